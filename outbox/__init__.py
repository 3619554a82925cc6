"""What goes out: the notification and alert messages, and how their feeds are read."""
