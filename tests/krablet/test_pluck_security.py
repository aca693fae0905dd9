"""What workers refuse before they unpickle anything, what functions cannot reach, and conditions that try to escape."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pleinair import krablet
from pleinair.krablet.pluck import Handle, pluck
from pleinair.krablet.pluck.admission import Ledger
from pleinair.krablet.pluck.jobs import JobSpec
from pleinair.krablet.pluck.runner import Confinement
from pleinair.krablet.pluck.signing import PRIVATE, Key, load_key, new_key, public_key, sign, write_keys
from pleinair.krablet.pluck.wire import decode_outcomes
from pleinair.records.errors import ConfigError, QueueError
from tests.krablet.pluck_jobs_of_tests import Numbers, double, wait_until


class _TouchesWhenUnpickled:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@dataclass(frozen=True)
class Canary:
    """A signed job whose function creates a file when it is unpickled."""

    numbers: Numbers
    handle: Handle
    file: Path

    @property
    def data(self) -> bytes:
        return pickle.dumps(_TouchesWhenUnpickled(self.file))

    def sign(self, key: Key | None = None, **changes: Any) -> None:
        """Store the order with `changes`, signed as it then is."""
        spec = replace(self.spec, **changes)
        self.store(header=spec.header, signature=sign(key or self.numbers.key, spec.header.encode()))

    def store(self, **values: Any) -> None:
        for column, value in values.items():
            self.numbers.sql(f"UPDATE pleinair.pluck_jobs SET {column} = %s", value)

    @property
    def spec(self) -> JobSpec:
        [(header,)] = self.numbers.sql("SELECT header FROM pleinair.pluck_jobs")
        return JobSpec.from_header(header)

    def refusal(self, **settings: Any) -> str:
        """Why a worker refuses it. The file must not be there."""
        assert not self.numbers.work(self.handle, **settings)
        assert not self.file.exists()
        [(reason,)] = self.numbers.sql("SELECT reason FROM pleinair.pluck_refusals")
        return str(reason)


@pytest.fixture
def canary(numbers: Numbers, tmp_path: Path) -> Canary:
    numbers.add(4)
    made = Canary(numbers, numbers.job(double), tmp_path / "canary")
    made.store(function=made.data)
    made.sign(function_sha256=hashlib.sha256(made.data).hexdigest())
    return made


def test_the_canary_sings_when_its_job_is_signed(canary: Canary) -> None:
    assert not canary.numbers.work(canary.handle)
    assert canary.file.exists()
    assert "cannot be called" in canary.handle.progress().refusals[0][1]


def changed(canary: Canary, **changes: Any) -> None:
    canary.store(
        header=json.dumps({**json.loads(canary.spec.header), **changes}, sort_keys=True, separators=(",", ":"))
    )


REFUSED: dict[str, tuple[Callable[[Canary], None], str]] = {
    "unsigned": (lambda canary: canary.store(signature=""), "it is not signed"),
    "signed by a stranger": (lambda canary: canary.sign(new_key()), "it is signed with key"),
    "another condition": (lambda canary: changed(canary, where="TRUE"), "altered after signing"),
    "another table": (lambda canary: changed(canary, table="secrets"), "altered after signing"),
    "another output": (
        lambda canary: changed(canary, output={"columns": {"value": "bigint"}}),
        "altered after signing",
    ),
    "a later expiry": (lambda canary: changed(canary, expires_at=9e9), "altered after signing"),
    "more memory": (lambda canary: changed(canary, limits={}), "altered after signing"),
    "another function": (lambda canary: canary.store(function=canary.data + b"."), "its function is not the one"),
    "no function": (lambda canary: canary.store(function=b""), "its function is not the one"),
    "expired": (lambda canary: canary.sign(expires_at=time.time() - 9), "it expired 9 seconds ago"),
    "copied under a new id": (
        lambda canary: canary.sign(id="11111111-1111-1111-1111-111111111111"),
        "it was signed as job 11111111-",
    ),
    "copied from another database": (
        lambda canary: canary.sign(shards=("1/elsewhere",)),
        "it was signed for 1/elsewhere",
    ),
    "another Python": (lambda canary: canary.sign(python="3.4"), "was made with Python 3.4 and this worker runs 3.11"),
    "a missing package": (
        lambda canary: canary.sign(packages={"no-such-thing": "1.2"}),
        "needs the package no-such-thing and this worker has none: pip install no-such-thing==1.2",
    ),
    "a header that is none": (
        lambda canary: canary.store(header="[]", signature=sign(canary.numbers.key, b"[]")),
        "its header cannot be read",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_worker_refuses_before_it_unpickles(canary: Canary, case: str) -> None:
    alter, reason = REFUSED[case]
    alter(canary)
    assert reason in canary.refusal()
    assert canary.numbers.done() == {}


def test_a_job_that_ended_and_is_put_back_is_refused(canary: Canary, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    spec = canary.spec
    Ledger(ledger).add(spec.id, spec.shards[0], spec.expires_at)
    assert ledger.stat().st_mode & 0o777 == 0o600
    assert "it ended here before and was put back" in canary.refusal(ledger=Ledger(ledger))


def test_a_worker_remembers_the_jobs_that_ended(numbers: Numbers, tmp_path: Path) -> None:
    numbers.add(4)
    handle, ledger = numbers.job(double), Ledger(tmp_path / "ledger")
    assert numbers.work(handle, ledger=ledger)
    numbers.sql("UPDATE numbers SET doubled = NULL")
    numbers.sql("UPDATE pleinair.pluck_jobs SET state = 'running', finished_at = NULL")
    numbers.sql("UPDATE pleinair.pluck_batches SET finished_at = NULL, after = NULL")
    assert not numbers.work(handle, ledger=Ledger(tmp_path / "ledger"))
    assert numbers.done() == {}


def test_a_pair_of_keys_lets_workers_verify_what_they_cannot_sign(numbers: Numbers, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path / "pair", PRIVATE)
    numbers.add(4)
    handle = numbers.job(double, key_file=private)
    assert numbers.work(handle, keys=[load_key(public)])
    assert numbers.done() == numbers.doubles(4)
    with pytest.raises(ConfigError, match="a public key cannot sign"):
        numbers.job(double, key_file=public)
    assert load_key(public) == public_key(load_key(private))


def test_workers_of_this_process_that_refuse_are_not_waited_for(numbers: Numbers) -> None:
    from pleinair.records.errors import RefusedError

    class Broken:
        def __init__(self) -> None:
            raise FileNotFoundError("no model here")

        def __call__(self, rows: list[dict[str, Any]]) -> list[int]:
            return double(rows)

    numbers.add(4)
    handle = numbers.job(Broken, workers=1)
    with pytest.raises(RefusedError, match="its function cannot be loaded: FileNotFoundError: no model here"):
        handle.wait(60, bar=False)
    handle.cancel()


SECRETS = {"PGPASSWORD": "secret-1", "DATABASE_URL": "postgresql://secret-2", "AWS_SECRET_ACCESS_KEY": "secret-3"}


def look_around(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a function can see of its worker: environment, command line, open files, user."""
    import os
    import resource

    environment = "\n".join(f"{name}={value}" for name, value in os.environ.items())
    errors = []
    for file in ("environ", "mem"):
        try:
            open(f"/proc/{os.getppid()}/{file}", "rb").close()
        except OSError as error:
            errors.append(f"{file}: {error.strerror}")
    limits = [
        resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)
    ]
    with open("/proc/self/status") as status:
        errors += [line.strip() for line in status if line.startswith("NoNewPrivs")]
    inherited = [int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    errors += [f"open: {os.fstat(number).st_mode >> 12:o}" for number in inherited if number > 2]
    view = {"environment": environment, "errors": errors, "uid": os.getuid(), "limits": limits, "home": os.getcwd()}
    return [view for _ in rows]


VIEWS = (
    "views",
    {"environment": "text", "errors": "text[]", "uid": "bigint", "limits": "bigint[]", "home": "text"},
)


def test_a_function_has_no_secret_in_its_environment(numbers: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    numbers.add(1)
    assert numbers.work(numbers.job(look_around, output=VIEWS))
    [(own, errors, limits, home)] = numbers.sql("SELECT environment, errors, limits, home FROM views")
    assert errors[-2:] == ["NoNewPrivs:\t1", "open: 14"]
    assert {line.partition("=")[0] for line in own.splitlines()} <= {
        "PATH", "LANG", "LC_CTYPE", "PYTHONPATH", "PYTHONFAULTHANDLER", "HOME", "TMPDIR",
    }  # fmt: skip
    assert not [secret for secret in (*SECRETS.values(), numbers.key.text, numbers.database.dsn) if secret in own]
    assert limits == [8 << 30, 1024, 0]
    assert home.startswith("/tmp/pleinair-pluck-")
    assert not Path(home).exists()


def readable_python() -> str | None:
    """A Python of this version that `nobody` can run, for root."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            Confinement("nobody", python, {}, sys.path).check()
        except ConfigError:
            continue
        version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
        if version.split(".")[:2] == [str(part) for part in sys.version_info[:2]]:
            return python
    return None


def test_a_worker_of_root_runs_functions_as_an_unprivileged_user(numbers: Numbers) -> None:
    if os.geteuid() != 0:
        with pytest.raises(ConfigError, match="cannot run functions"):
            Confinement("nobody").check()
        return
    python = readable_python()
    if python is None:
        pytest.skip("no Python of this version can be run by the user nobody")
    numbers.add(1)
    handle = numbers.job(look_around, output=VIEWS)
    assert numbers.work(handle, confinement=Confinement("nobody", python, {}, sys.path)), handle.progress().refusals
    [(errors, uid)] = numbers.sql("SELECT errors, uid FROM views")
    assert uid != 0
    assert errors[:2] == ["environ: Permission denied", "mem: Permission denied"]


def test_a_python_the_user_cannot_run_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot run functions with /no/python .*: give a Python and packages"):
        Confinement(python="/no/python").check()
    with pytest.raises(ConfigError, match="there is no user 'no such user' on this machine"):
        Confinement("no such user").check()


def test_a_function_that_answers_nonsense_fails_its_row_and_not_its_worker(numbers: Numbers) -> None:
    def forge(rows: list[dict[str, Any]]) -> list[int]:
        import gc
        import socket

        [link] = [each for each in gc.get_objects() if isinstance(each, socket.socket)]
        link.sendall((2**60).to_bytes(8, "big"))
        return double(rows)

    numbers.add(2)
    handle = numbers.job(forge)
    assert numbers.work(handle)
    assert handle.progress().failed == 2
    assert "answered nonsense: a frame of 1152921504606846976 bytes" in handle.errors()[0].message


@pytest.mark.parametrize(
    "outcomes",
    [[], [{}], [{"values": []}], [{"values": [1, 2]}], [{"failure": {}}], [{"values": [{"bytes": "?", "more": 1}]}], 5],
)
def test_outcomes_of_another_shape_are_not_believed(outcomes: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        decode_outcomes({"outcomes": outcomes}, 1, 1)


ESCAPES = [
    "1=1); DROP TABLE numbers; --",
    "TRUE; DROP TABLE numbers",
    "1=1) OR (1=1",
    "TRUE] || ARRAY[TRUE",
    "TRUE) UNION SELECT 'x' FROM numbers WHERE (TRUE",
    "TRUE) LIMIT 1 --",
    "TRUE /*",
    "TRUE OR name = '",
    "TRUE OR name = $x$",
    "TRUE OR name = E'\\",
    "EXISTS (WITH gone AS (DELETE FROM numbers RETURNING 1) SELECT FROM gone)",
    "(SELECT TRUE",
    "",
    "TRUE, TRUE",
]
WRITES = [
    "nextval('pleinair.pluck_tokens') > 0",
    "set_config('transaction_read_only', 'off', TRUE) = 'off'",
    "empty_numbers()",
]


def test_a_condition_cannot_leave_its_parentheses(numbers: Numbers) -> None:
    numbers.add(3)
    for where in ESCAPES:
        with pytest.raises(QueueError, match="pluck cannot use the condition"):
            numbers.job(double, where=where)
        assert numbers.sql("SELECT count(*) FROM numbers") == [(3,)], where


def test_a_condition_cannot_write(numbers: Numbers) -> None:
    numbers.add(3)
    numbers.sql(
        "CREATE FUNCTION empty_numbers() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS "
        "$$ BEGIN DELETE FROM numbers; RETURN TRUE; END $$"
    )
    for where in WRITES:
        with pytest.raises(QueueError, match=r"read-only transaction|before any query"):
            numbers.job(double, where=where)
        assert numbers.sql("SELECT count(*) FROM numbers") == [(3,)], where


HONEST = [
    "value < 2 -- the first",
    "value < 2 /* the first */",
    "value = ANY (ARRAY[0, 1])",
    "name LIKE '%00000_' AND value < 2",
    "value < 2 AND name <> ')' AND name <> '--'",
    "value IN (SELECT value FROM numbers WHERE value < 2)",
]


def test_honest_conditions_with_comments_brackets_and_percents_work(numbers: Numbers) -> None:
    numbers.add(20)
    for where in HONEST:
        assert numbers.work(numbers.job(double, where=where))
        assert numbers.done() == numbers.doubles(2), where
        numbers.sql("UPDATE numbers SET doubled = NULL")


def test_a_reader_role_reads_in_the_workers_stead(numbers: Numbers) -> None:
    numbers.add(4)
    numbers.sql("CREATE TABLE secrets (word text)")
    role = f"reader_{os.getpid()}_{time.time_ns()}"
    numbers.sql(f"CREATE ROLE {role}")
    numbers.sql(f"GRANT SELECT ON numbers TO {role}; GRANT USAGE ON SCHEMA pleinair TO {role}")
    try:
        with pytest.raises(QueueError, match="permission denied for table secrets"):
            numbers.job(double, reader=role, where="NOT EXISTS (SELECT FROM secrets)")
        assert numbers.work(numbers.job(double, reader=role))
        assert numbers.done() == numbers.doubles(4)
    finally:
        numbers.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_the_keys_of_a_database_do_not_travel_to_its_workers_in_their_command_line(numbers: Numbers) -> None:
    def slow(rows: list[dict[str, Any]]) -> list[int]:
        import time

        time.sleep(0.2)
        return double(rows)

    numbers.add(100)
    handle = pluck(numbers.database, "numbers", "name").map(slow, output="doubled", workers=1, batch=1)
    assert handle.processes is not None
    wait_until(lambda: bool(handle.processes and handle.processes.pids))
    command_line = Path(f"/proc/{handle.processes.pids[0]}/cmdline")
    wait_until(lambda: "pleinair.krablet.pluck.process" in command_line.read_text())
    line = command_line.read_text()
    assert numbers.database.dsn not in line
    handle.cancel()
    assert handle.processes.pids == ()


def test_krablet_is_imported_without_what_only_functions_need() -> None:
    script = (
        "import sys, pleinair.krablet; print({'cloudpickle', 'cryptography', 'pyarrow', 'torch'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_a_database_handle_needs_no_key(numbers: Numbers) -> None:
    numbers.add(2)
    handle = numbers.job(double)
    with krablet.connect(numbers.database.dsn) as database:
        krablet.pluck.attach(database, handle.id).cancel()
    assert handle.progress().state == "cancelled"
