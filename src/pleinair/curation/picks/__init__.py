"""Sets chosen by hand: events, what they add up to, the page that makes them, and their export."""
