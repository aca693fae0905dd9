"""`pleinair krablet role create|list`: the logins of a warehouse, each with no more rights than its work needs."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path
from typing import Any

from pleinair.cli.krablet import add_database, opened, print_table
from pleinair.records.errors import ConfigError


def register(verbs: Any) -> None:
    """Add `role` to the verbs of `krablet`."""
    role = verbs.add_parser("role", help="make the logins of workers, services and people")
    actions = role.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a login on every server, or give one exactly its rights")
    create.add_argument(
        "kind", choices=("owner", "worker", "funnel", "pluck", "reader", "metrics"), help="what it is for"
    )
    create.add_argument("name", help="the login")
    password = create.add_mutually_exclusive_group()
    password.add_argument("--password-file", type=Path, help="where its password stands; asked for otherwise")
    password.add_argument("--password-env", metavar="VARIABLE", help="the environment variable that holds it")
    password.add_argument("--no-password", action="store_true", help="leave it to whoever manages passwords")
    add_database(create)
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="the logins made here and what each is for")
    add_database(listing)
    listing.set_defaults(run=_list)


def _create(args: argparse.Namespace) -> int:
    password = _password(args)
    with opened(args) as database:
        database.create_role(args.kind, args.name, password)
        print(f"{args.name} is a {args.kind} on {', '.join(shard.where for shard in database.shards)}")
    return 0


def _password(args: argparse.Namespace) -> str | None:
    """The password, None to leave it as it is."""
    if args.no_password:
        return None
    if args.password_file is not None:
        return _given(_read(args.password_file), f"the file {args.password_file}")
    if args.password_env is not None:
        return _given(os.environ.get(args.password_env, ""), f"the variable {args.password_env}")
    if not sys.stdin.isatty():
        raise ConfigError(f"{args.name} needs a password: give --password-file, --password-env or --no-password")
    return getpass.getpass(f"password of {args.name} (empty: leave it): ") or None


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; correct --password-file") from error


def _given(password: str, where: str) -> str:
    if not password:
        raise ConfigError(f"{where} holds no password: write it there, or give --no-password")
    return password


def _list(args: argparse.Namespace) -> int:
    from pleinair.krablet.roles import list_roles

    with opened(args) as database:
        rows = [(shard.number, *row) for shard in database.shards for row in shard.session.run(list_roles)]
    print_table(("shard", "kind", "role"), rows)
    return 0
