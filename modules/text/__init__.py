"""The text side: encoders, interaction, match, relevance."""
