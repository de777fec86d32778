"""Proofs that what deploy/ ships runs: proxies, manifests, the systemd unit, the image."""
