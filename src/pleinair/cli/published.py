"""`pleinair evaluate CHECKPOINT --suite geneval2 --prompts FILE --judge URL`: a published benchmark, with what one brings.

    FILE -> prompts -> OUT/pictures (the official layout) -> judge -> OUT/metrics.json

Without a judge it draws, and says how the official scorer is started on the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.endpoints import Budget, Endpoint
from pleinair.evaluation.published import BENCHMARKS, NOT_RUN, Benchmark, Item, Plan
from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.endpoints import Chat
    from pleinair.evaluation.published.score import Score

SUITES = tuple(BENCHMARKS)
RAPIDOCR = "rapidocr"


@dataclass(frozen=True, kw_only=True)
class JudgingConfig:
    """How a judge behind HTTP is asked."""

    endpoint: Endpoint = field(default_factory=Endpoint)
    """Where it is; url and model come from --judge and --judge-model."""
    budget: Budget = field(default_factory=Budget)
    """The most that may be spent in this output folder."""


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    """Options of `evaluate` that belong to published benchmarks."""
    parser.add_argument(
        "--judge",
        metavar="URL|FOLDER",
        help="of published benchmarks: an OpenAI-compatible address, a vision-language model's folder, or rapidocr; "
        "without it pictures are drawn for the official scorer",
    )
    parser.add_argument("--judge-model", default="", metavar="NAME", help="the judge as its server calls it")
    parser.add_argument(
        "--judge-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="e.g. endpoint.key_variable=OPENAI_API_KEY budget.dollars=20 (repeatable)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N prompts only: no official score")
    parser.add_argument("--copies", type=int, metavar="N", help="pictures of each prompt (default: as published)")


def evaluate_published(options: argparse.Namespace) -> int:
    """Draw, ask, write; goes on where it was stopped. Raises ConfigError before anything is drawn."""
    from pleinair.cluster.locks import only_one

    benchmark = BENCHMARKS[options.suite]
    plan = plan_of(options, benchmark)
    items = read_items(options, benchmark, plan)
    out: Path = options.output or Path(options.suite) / plan.model
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        check_judge(options, benchmark, out / "judge")
        draw_items(options, items, plan, out.resolve())
        write_companions(benchmark, items, out.resolve())
        print(f"pictures: {out / 'pictures'}", flush=True)
        if options.judge is None:
            command = benchmark.scorer.format(out=out.resolve(), prompts=options.prompts, model=plan.model)
            print(f"{NOT_RUN}\nofficial scorer: {command}")
            return 0
        score = judge_items(options, benchmark, items, plan, out)
    from pleinair.evaluation.published.score import as_text

    print(as_text(score, benchmark))
    print(f"numbers: {out / 'metrics.json'}")
    return 0


def plan_of(options: argparse.Namespace, benchmark: Benchmark[Any]) -> Plan:
    """How much is drawn, and under which name. Raises ConfigError."""
    if options.recipe in ("real", "reconstruction"):
        raise ConfigError(f"{options.recipe} shows the drawing sets, not a benchmark's prompts: give a model")
    copies = benchmark.copies if options.copies is None else options.copies
    if copies < 1 or (benchmark.allowed and copies not in benchmark.allowed):
        known = ", ".join(map(str, sorted(benchmark.allowed))) or "1 or more"
        raise ConfigError(f"--copies is {copies}: the layout of {benchmark.title} holds {known}")
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit is {options.limit}: give 1 or more")
    path = Path(options.recipe)
    model = "-".join(path.resolve().with_suffix("").parts[-2:]) if path.exists() else options.recipe
    return Plan(model=model, copies=copies)


def read_items(options: argparse.Namespace, benchmark: Benchmark[Any], plan: Plan) -> Sequence[Item[Any]]:
    """The prompts asked for. Raises ConfigError."""
    if options.prompts is None:
        raise ConfigError(f"{benchmark.title} comes without its prompts: give --prompts {benchmark.brings}")
    if not options.prompts.exists():
        raise ConfigError(f"there is no {options.prompts}: give --prompts {benchmark.brings}")
    return benchmark.read(options.prompts, plan)[: options.limit]


def draw_items(options: argparse.Namespace, items: Sequence[Item[Any]], plan: Plan, out: Path) -> None:
    """Every file that is not there yet, by the model that the command names."""
    from pleinair.cli.exploration import open_model
    from pleinair.cli.progress import ProgressLine
    from pleinair.config import config_digest
    from pleinair.evaluation.published.drawing import draw_files, sheets
    from pleinair.model.digest import part_digest

    sampler, config = open_model(options.recipe)
    identity = config_digest([part_digest(sampler.transformer), config])
    line = ProgressLine("pictures")
    draw_files(
        sheets(items, plan.copies, options.seed),
        lambda prompts, seeds: sampler.sample(prompts, seeds, config),
        identity,
        out,
        line.update,
    )
    line.close()


def write_companions(benchmark: Benchmark[Any], items: Sequence[Item[Any]], out: Path) -> None:
    """The text files that the scorer reads."""
    for name, text in benchmark.companions(items, out / "pictures").items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        _write(out / name, text)


def judge_items(
    options: argparse.Namespace, benchmark: Benchmark[Any], items: Sequence[Item[Any]], plan: Plan, out: Path
) -> Score:
    """Ask, measure, write `metrics.json`."""
    from pleinair.cli.progress import ProgressLine
    from pleinair.cli.report import commit, machine
    from pleinair.evaluation.published.judging import ask
    from pleinair.evaluation.published.score import scored, to_document

    line = ProgressLine("questions")
    with open_judge(options, benchmark, out / "judge") as chat:
        judged = ask(chat, benchmark, items, plan.copies, out / "pictures", line.update)
        score = scored(options.suite, benchmark, judged, subject=plan.model, judge=chat.name, copies=plan.copies)
    line.close()
    facts = {
        "seed": options.seed,
        "prompts": str(options.prompts),
        "prompts_sha256": hashlib.sha256("\n".join(item.prompt for item in items).encode()).hexdigest(),
        "commit": commit(),
        "machine": machine(),
    }
    _write(out / "metrics.json", json.dumps({**to_document(score, benchmark), **facts}, indent=1) + "\n")
    return score


def check_judge(options: argparse.Namespace, benchmark: Benchmark[Any], place: Path) -> None:
    """Find a wrong address, key or name before hours of drawing; a model's folder is loaded when it is needed."""
    if options.judge is not None and not Path(options.judge).is_dir():
        with open_judge(options, benchmark, place):
            pass


@contextmanager
def open_judge(options: argparse.Namespace, benchmark: Benchmark[Any], place: Path) -> Iterator[Chat]:
    """The judge that the options name; its answers are kept in `place`. Raises ConfigError."""
    from pleinair.config import override
    from pleinair.endpoints import ChatClient

    chosen: str = options.judge
    if "://" in chosen:
        config = override(JudgingConfig(), options.judge_set)
        endpoint = replace(config.endpoint, url=chosen, model=options.judge_model)
        with ChatClient(endpoint, stage=options.suite, place=place, budget=config.budget) as client:
            yield client
        return
    from pleinair.evaluation.published.judges import Kept, LocalModel, ReadingJudge

    if chosen == RAPIDOCR:
        from pleinair.captioning.ocr import text_reader

        if benchmark.wants != "writing":
            raise ConfigError(
                f"{RAPIDOCR} reads text and answers no questions of {benchmark.title}: give a URL or folder"
            )
        local: Chat = ReadingJudge(text_reader(RAPIDOCR))
    elif Path(chosen).is_dir():
        local = LocalModel(Path(chosen))
    else:
        raise ConfigError(f"there is no judge {chosen}: give http://host:port/v1, a model's folder, or {RAPIDOCR}")
    kept = Kept(local, place)
    try:
        yield kept
    finally:
        kept.close()


def _write(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)
