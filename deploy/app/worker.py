"""A worker: one process of a Deployment. SIGTERM gives the rows in work back and ends it."""

import os

from pleinair import krablet


def measure(rows):
    """Your work: a list of rows as dicts in, a dict of the columns the stage writes for each, in order."""
    return [{"width": len(row["path"])} for row in rows]


with krablet.connect(os.environ["KRABLET_DSN"]) as database:
    krablet.work(database.declared_stages(), {"measure": measure}, idle="wait")
