"""Declares the tables and stages and gives every login its rights; run as the owner, again after every change."""

import os

from pleinair import krablet

LOGINS = {
    "worker": "krablet_worker",
    "funnel": "krablet_funnel",
    "pluck": "krablet_pluck",
    "reader": "krablet_reader",
    "metrics": "krablet_metrics",
}

with krablet.connect(os.environ["KRABLET_DSNS"].split(";")) as database:  # several: joins those that are new
    images = database.table("images", key="path", columns={"path": "text", "width": "integer", "views": "bigint"},
                            merge={"views": "sum"})  # fmt: skip
    images.stage("measure", ready="width IS NULL", writes=["width"], batch=64)
    for kind, login in LOGINS.items():
        database.create_role(kind, login)  # their passwords are CloudNativePG's to set
    print(f"{len(database.shards)} shards, {len(database.declared_stages())} stages")
