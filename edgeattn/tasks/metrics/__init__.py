"""The metrics themselves, numpy alone; each is held to the field's own library by a test."""
