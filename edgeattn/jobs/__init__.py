"""What runs in a process of its own, here or on a device."""
