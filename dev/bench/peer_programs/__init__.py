"""Programs of the servers that hotslot is measured beside; those of LitServe and MLServer run in `.venv-peers`."""
