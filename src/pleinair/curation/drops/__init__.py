"""Every drop, checkable in two clicks: the stage and reason, then the picture with all that is known of it."""
