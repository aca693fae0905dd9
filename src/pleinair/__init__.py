"""pleinair: the open system behind a Krea-2-class text-to-image model. Parts are imported by name; nothing heavy loads here."""

__version__ = "0.1.0"
