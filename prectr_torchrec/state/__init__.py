"""What is known of users as of a moment, event by event; imported without torch."""
