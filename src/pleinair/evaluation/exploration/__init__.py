"""The suite `exploration`: what a creator who explores needs, measured with ground truth; see `suite`."""
