"""Model cards, and what goes to the Hub in one commit."""
