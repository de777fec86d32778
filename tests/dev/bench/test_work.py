"""Operations of an answer are counted from shapes."""

from dataclasses import replace

from dev.bench.work import work_of
from inference.runner.engines.ofa.config import DecoderPrompt, EngineConfig

LARGE = EngineConfig(
    width=1024,
    encoder_layers=12,
    encoder_heads=16,
    encoder_ffn=4096,
    decoder_layers=12,
    decoder_heads=16,
    decoder_ffn=4096,
    vocabulary=50265,
    resnet_blocks=(3, 8, 36),
    image_size=480,
    image_mean=(0.5, 0.5, 0.5),
    image_deviation=(0.5, 0.5, 0.5),
    max_prompt_tokens=80,
    decoder_prompt=DecoderPrompt.SOURCE,
    begin_token=0,
    pad_token=1,
    end_token=2,
)


def test_an_answer_of_the_large_model_takes_0_47_teraflop() -> None:
    """As others have counted it; our engine executes a twentieth less, since its questions come to the memory."""
    work = work_of(LARGE, 14)
    assert 0.465e12 < work.model < 0.475e12
    assert 0.92 < work.executed / work.model < 0.96


def test_a_picture_of_twice_the_side_takes_four_times_the_resnet() -> None:
    """And more than that of the encoder, whose tokens look at each other."""
    small, large = work_of(LARGE, 14), work_of(replace(LARGE, image_size=960), 14)
    assert large.resnet == 4 * small.resnet
    assert large.encoder > 4 * small.encoder
