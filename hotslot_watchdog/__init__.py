"""The stack in the foreground (`stack`), and supervisord's event listener, which restarts unresponsive processes."""
