"""Names inside a model directory."""

WEIGHTS = "pytorch_model.bin"
ANSWER_MAP = "ans2label.json"
VOCABULARY = "vocab.json"
MERGES = "merges.txt"
CARD = "README.md"
TABLE = "encoder.embed_tokens.weight"
TIED_TO_TABLE = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
EYES = "encoder.embed_images."
MADE_BY_THE_LOADER = ("image_rp_bucket", "token_rp_bucket", "image_position_idx")
