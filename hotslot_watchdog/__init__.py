"""What keeps the processes: the stack that is run in the foreground, and supervisord's listener inside it."""
