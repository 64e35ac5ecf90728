"""The wire: from the bytes of a connection to the shapes of a capture request."""
