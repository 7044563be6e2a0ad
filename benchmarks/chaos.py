"""Kills and damage: does the same command, run again, end as one that was never disturbed?

    python benchmarks/chaos.py --kills 200 --damages 60 --seed 0     # about 20 minutes on one core
    python benchmarks/chaos.py --kills 20 --only grow                # of commands whose name holds a word

**Kills.** A command is killed by SIGKILL at a random moment of its run and run again, perhaps to be killed again,
until it is done. What it then leaves is compared, byte for byte but for seconds and speeds, with what an undisturbed
one left, and its directory is searched for anything else.

**Damages.** A run is killed; then a file of what it left is flipped in one bit, cut, emptied or deleted, or a directory
is, and the same command runs until it is done or has refused too often. So are prepared corpora, which are then
trained on.

Everything is tiny. Commands are children forked from a process that has imported everything and computed nothing, so
that a start costs milliseconds. Exits with 1 if anything was lost, differed, was left over, silent or a traceback.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import gc
import hashlib
import itertools
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.models.gpt_neox.modeling_gpt_neox
from rich.console import Console
from rich.table import Table

from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.composition import (
    add_expert,
    compose_directories,
    fit_directory,
    load_model,
    remove_expert,
    reweight,
    set_rule,
)
from treering.corpus import Source, prepare, read_documents
from treering.errors import TreeringError
from treering.evaluation import held_out_texts
from treering.growth import GrowthRecipe, GrowthResult, Plan, Stage, Turns, grow_recipe
from treering.report import as_png, loss_curves
from treering.training import Backbone, ExpertRecipe, Training, train_expert

TINY = Backbone(preset="tiny")
TRAINING = Training(tokens=2048, batch_tokens=256, evaluations=2, checkpoint_steps=2)
PLAN = Plan(
    stages=(
        Stage(new="1", start="random", share=0.25),
        Stage(new="2", share=0.25, keep_moments=True),
        Stage(new="3", train="2-3", start="copy", turns=Turns(width=1, steps=1), share=0.5, keep_moments=True),
    )
)
TIMES = (
    "seconds",
    "prefix_seconds",
    "tokens_per_second",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
)
DONE, FAULT, REFUSED = 0, 1, 2
MOST = 5
"""Starts of a command until it counts as lost."""


@dataclass(frozen=True)
class Command:
    """Something that is run again after it was killed.

    Attributes:
        run: does it, on things in one directory.
        result: what it makes or changes there.
        begins: what is copied there first.
    """

    name: str
    run: Callable[[Path], object]
    result: str
    begins: tuple[str, ...] = ()


def quiet() -> Console:
    """Whatever a command says goes to its log."""
    return Console(file=sys.stderr, width=500)


def train(place: Path, data: Path = Path("data")) -> None:
    names = {"substrate": "substrate", "data": str(data), "output": str(place / "out")}
    train_expert(ExpertRecipe(**names, backbone=TINY, training=TRAINING), quiet())


def grow(prefix: str) -> Callable[[Path], None]:
    def run(place: Path) -> None:
        recipe = GrowthRecipe.model_validate(
            {
                "substrate": "substrate",
                "data": "data",
                "output": str(place / "out"),
                "backbone": {"preset": "tiny"},
                "plan": PLAN,
                "training": TRAINING,
                "prefix": prefix,
                "abilities": False,
            }
        )
        grow_recipe(recipe, quiet(), draw=draw)

    return run


def draw(grown: GrowthResult) -> bytes:
    """The loss curve, which knows no seconds: the same bytes in every run."""
    return as_png(loss_curves({"out": grown.history}), dpi=30)


def prepared(place: Path) -> None:
    sources = [Source(path="ru.jsonl"), Source(path="en.jsonl")]
    prepare(sources, tokenizers.load("substrate"), place / "out", block_size=64, validation=0.04, calibration=0.04)


def once(change: Callable[[Path], object], done: str) -> Callable[[Path], None]:
    """A change that says ``done`` when it has been made already."""

    def run(place: Path) -> None:
        try:
            change(place)
        except TreeringError as error:
            if not re.search(done, str(error)):
                raise

    return run


def compose(place: Path) -> None:
    compose_directories({"a": "a", "b": "b"}, place / "joined")


def fit(place: Path) -> None:
    texts = held_out_texts(["data"], "calibration")
    fit_directory(place / "joined", {name: found[:4] for name, found in texts.items()}, "weighted", console=quiet())


JOINED, THERE = ("joined",), "already exists with other content"

COMMANDS = [
    Command("train", once(train, THERE), "out"),
    *(
        Command(f"grow, {prefix}", once(grow(prefix), THERE), "out")
        for prefix in ("recompute", "float32", "bfloat16", "int8")
    ),
    Command("data prepare", once(prepared, THERE), "out"),
    Command("compose", once(compose, THERE), "joined"),
    Command("compose add", once(lambda at: add_expert(at / "joined", "c", "c"), "already"), "joined", JOINED),
    Command("compose remove", once(lambda at: remove_expert(at / "joined", "b"), "no expert"), "joined", JOINED),
    Command("compose reweight", lambda at: reweight(at / "joined", {"a": 3.0}), "joined", JOINED),
    Command("compose rule", lambda at: set_rule(at / "joined", "mean"), "joined", JOINED),
    Command("compose fit", fit, "joined", JOINED),
]


def set_up() -> None:
    """What commands begin with: texts, a tokenizer with its substrate, a corpus, three experts, two of them joined."""
    texts = {}
    for language in ("ru", "en"):
        pages = list(itertools.islice(read_documents(f"embedded:{language}"), 120))
        lines = [json.dumps({"id": page.id, "text": page.text}) for page in pages]
        Path(f"{language}.jsonl").write_text("\n".join(lines))
        texts[language] = [page.text for page in pages]
    tokenizer = tokenizers.train(texts, vocab_size=1500)
    Path("substrate").mkdir()
    substrates.build(tokenizer, 64, kind="random").save("substrate", tokenizer)
    sources = [Source(path="ru.jsonl"), Source(path="en.jsonl")]
    prepare(sources, tokenizer, "data", block_size=64, validation=0.04, calibration=0.04)
    for seed, name in enumerate("abc"):
        recipe = ExpertRecipe(
            substrate="substrate",
            data="data",
            output=name,
            backbone=TINY,
            training=TRAINING.model_copy(update={"seed": seed, "tokens": 512}),
        )
        train_expert(recipe, quiet())
    compose_directories({"a": "a", "b": "b"}, "joined")
    load_model("joined")


@dataclass
class Ended:
    """How a child ended: its exit code, None if it was killed; what it said."""

    code: int | None
    said: str


def in_child(act: Callable[[], object], log: Path, kill_after: float | None = None) -> Ended:
    """Run something in a forked child, with its output in ``log``; end it by SIGKILL after so many seconds."""
    log.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os._exit(_act(act, log))
    begun = time.monotonic()
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if kill_after is not None and time.monotonic() - begun >= kill_after:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.001)
    _, status = os.waitpid(child, 0)
    said = log.read_text(errors="replace") if log.exists() else ""
    return Ended(None if os.WIFSIGNALED(status) and kill_after is not None else os.waitstatus_to_exitcode(status), said)


def _act(act: Callable[[], object], log: Path) -> int:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    try:
        act()
    except TreeringError as error:
        print(f"error: {error}", flush=True)
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return FAULT
    return DONE


def content(directory: Path) -> dict[str, str]:
    """By name, what each file below a directory holds, but for how long things took."""
    found = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        held = path.read_bytes()
        if path.suffix == ".json":
            held = json.dumps(_without_times(json.loads(held))).encode()
        found[str(path.relative_to(directory))] = hashlib.sha256(held).hexdigest()
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(held) for name, held in value.items() if name not in TIMES}
    return [_without_times(held) for held in value] if isinstance(value, list) else value


@dataclass
class Undisturbed:
    """What a command makes when nothing happens, and the seconds that it takes."""

    command: Command
    content: dict[str, str]
    seconds: float


class Chaos:
    """Trials in a directory, all from one seed.

    Attributes:
        counts: of what happened, by command or kind of damage.
        faults: what should not have happened, in words.
    """

    def __init__(self, scratch: Path, seed: int, console: Console) -> None:
        self.scratch, self.console = scratch, console
        self.random = random.Random(seed)
        self.counts: dict[str, Counter[str]] = {}
        self.faults: list[str] = []
        self.log = scratch / "log"

    def undisturbed(self, command: Command) -> Undisturbed:
        """Run a command without killing it."""
        place = self._place(command)
        begun = time.monotonic()
        ended = self._run(command, place)
        if ended.code != DONE:
            raise SystemExit(f"{command.name} does not even run undisturbed:\n{ended.said}")
        return Undisturbed(command, content(place / command.result), time.monotonic() - begun)

    def kill(self, known: Undisturbed) -> int:
        """One trial: kill a command once or more, and run it until it is done; returns how often it was killed."""
        command, counts = known.command, self.counts.setdefault(known.command.name, Counter())
        place, moments = self._place(command), list[str]()
        while not moments or (self.random.random() < 0.4 and len(moments) < MOST):
            after = self.random.uniform(0, 1.05 * known.seconds)
            ended = self._run(command, place, after)
            if ended.code is None:
                moments.append(f"{after:.2f} s")
            elif moments:
                break
            else:  # it was done before its moment came
                place = self._place(command)
        ended = self._run(command, place)
        kills, when = len(moments), f"{command.name}, killed after {', '.join(moments)}"
        counts["kills"] += kills
        if ended.code != DONE:
            self._fault(counts, "lost", f"{when}: {ended.said[-2000:]}", kills)
            return kills
        if differing := _differing(content(place / command.result), known.content):
            self._fault(counts, "differing", f"{when}: {differing}", kills)
        else:
            counts["gone on with"] += kills
        self._look_for_leftovers(counts, place, command, when)
        return kills

    def damage_run(self, known: Undisturbed) -> None:
        """One trial: kill a run in its middle, damage what it left, and run it until it is done."""
        command = known.command
        while True:
            place = self._place(command)
            after = self.random.uniform(0.3, 1) * known.seconds
            ended = self._run(command, place, after)
            targets = [
                path for path in place.rglob("*") if ".unfinished" in str(path) and path.name != "out.unfinished"
            ]
            if ended.code is None and targets:
                break
        target = self._choose(targets)
        newest = _newest(target)
        what = self._damage(target)
        self._until_done(known, place, what, newest)

    def damage_corpus(self, known: Undisturbed) -> None:
        """One trial: damage a corpus, and train on it."""
        place = self._place(known.command)
        shutil.copytree("data", place / "data")
        target = self._choose([path for path in (place / "data").rglob("*") if path.is_file()])
        what = self._damage(target)

        ended = in_child(lambda: train(place, place / "data"), self.log)
        counts = self.counts.setdefault("corpora", Counter())
        counts["damages"] += 1
        if ended.code == REFUSED:
            counts["refused with a message"] += 1
        elif ended.code != DONE:
            self._fault(counts, "tracebacks", f"{what}: {ended.said[-2000:]}")
        elif _differing(content(place / "out"), known.content):
            self._fault(counts, "silent", what)
        else:
            counts["as undisturbed"] += 1

    def _until_done(self, known: Undisturbed, place: Path, what: str, newest: tuple[Path, Path] | None) -> None:
        kind = next((word for word in ("checkpoint", "prefix", "moments", "stages") if f"{word}" in what), "records")
        counts = self.counts.setdefault(f"{kind}, {known.command.name}", Counter())
        counts["damages"] += 1
        said = ""
        for _ in range(MOST):
            ended = self._run(known.command, place)
            said += ended.said
            if ended.code != REFUSED:
                break
        if ended.code == REFUSED:
            self._fault(counts, "lost", f"{what}: {said[-2000:]}")
            return
        if ended.code != DONE:
            self._fault(counts, "tracebacks", f"{what}: {said[-2000:]}")
            return
        if differing := _differing(content(place / known.command.result), known.content):
            self._fault(counts, "silent", f"{what}: {differing}")
        else:
            counts["as undisturbed"] += 1
        self._look_for_leftovers(counts, place, known.command, what)
        if newest:
            damaged, older = newest
            counts["with an older checkpoint"] += 1
            if f"{damaged.name} cannot be used" in said and f"going on from step {older.name[11:]} " in said:
                counts["older used"] += 1
            else:
                self._fault(counts, "older not used", f"{what}: {said[-2000:]}")

    def _run(self, command: Command, place: Path, kill_after: float | None = None) -> Ended:
        return in_child(lambda: command.run(place), self.log, kill_after)

    def _look_for_leftovers(self, counts: Counter[str], place: Path, command: Command, what: str) -> None:
        if left := sorted(path.name for path in place.iterdir() if path.name != command.result):
            self._fault(counts, "leftovers", f"{what}: {left}", len(left))

    def _choose(self, paths: list[Path]) -> Path:
        """One of them: first which kind of thing, then which, so that many small files do not hide the large."""
        kinds: dict[str, list[Path]] = {}
        for path in sorted(paths):
            kinds.setdefault(re.sub(r"\d+|[0-9a-f]{32}", "N", f"{path.parent.name}/{path.name}"), []).append(path)
        return self.random.choice(kinds[self.random.choice(sorted(kinds))])

    def _damage(self, path: Path) -> str:
        if path.is_dir():
            how = self.random.choice(["deleted", "emptied"])
            shutil.rmtree(path)
            if how == "emptied":
                path.mkdir()
            return f"{path} {how}"
        size = path.stat().st_size
        how = self.random.choice(["flipped", "flipped", "cut", "deleted", "emptied"]) if size else "deleted"
        if how == "flipped":
            bit = self.random.randrange(8 * size)
            held = bytearray(path.read_bytes())
            held[bit // 8] ^= 1 << bit % 8
            path.write_bytes(held)
            return f"{path} flipped in bit {bit} of {8 * size}"
        if how == "deleted":
            path.unlink()
        else:
            os.truncate(path, self.random.randrange(size) if how == "cut" else 0)
        return f"{path} {how}"

    def _place(self, command: Command) -> Path:
        place = self.scratch / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name in command.begins:
            shutil.copytree(self.scratch / name, place / name)
        return place

    def _fault(self, counts: Counter[str], what: str, words: str, number: int = 1) -> None:
        counts[what] += number
        self.faults.append(f"{what}: {words}")
        self.console.print(f"{what}: {words}", style="red", markup=False, highlight=False)


def _differing(found: dict[str, str], known: dict[str, str]) -> list[str]:
    return [name for name in sorted(found.keys() | known.keys()) if found.get(name) != known.get(name)]


def _newest(target: Path) -> tuple[Path, Path] | None:
    """Of a path in or of the newest checkpoint of a run: that, and the one before it, if there is one."""
    checkpoint = next((path for path in (target, *target.parents) if re.fullmatch(r"checkpoint-\d+", path.name)), None)
    if checkpoint is None:
        return None
    found = [path for path in checkpoint.parent.glob("checkpoint-*") if path.name[11:].isdigit()]
    found.sort(key=lambda path: int(path.name[11:]))
    return (checkpoint, found[-2]) if checkpoint == found[-1] and len(found) > 1 else None


def table(title: str, counts: dict[str, Counter[str]]) -> Table:
    """Rows of counts, and their sum."""
    columns = list(dict.fromkeys(column for row in counts.values() for column in row))
    shown = Table(title, *columns, box=None)
    for name, row in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        shown.add_row(name, *(str(row[column]) for column in columns))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only commands whose name holds this word")
    options = parser.parse_args()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    gc.freeze()  # or every child goes through all that was imported, again and again
    console, commands = Console(width=200), [command for command in COMMANDS if options.only in command.name]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        made = in_child(set_up, Path(scratch, "log"))
        if made.code != DONE:
            raise SystemExit(made.said)
        console.print(f"seed {options.seed}; {time.monotonic() - begun:.0f} s to set up")
        chaos = Chaos(Path(scratch), options.seed, console)
        known = [chaos.undisturbed(command) for command in commands]
        kills = 0
        for each in itertools.cycle(known):
            if kills >= options.kills:
                break
            kills += chaos.kill(each)
            print(f"{kills} kills", file=sys.stderr)
        if options.kills:
            console.print(table("killed", chaos.counts))
        chaos.counts = {}
        runs = [each for each in known if each.command.name == "train" or each.command.name.startswith("grow")]
        for number, each in zip(range(options.damages), itertools.cycle(runs), strict=False):
            if number % 5 == 4 and runs[0].command.name == "train":
                chaos.damage_corpus(runs[0])
            else:
                chaos.damage_run(each)
        if chaos.counts:
            console.print(table("damaged", chaos.counts))
    console.print(f"{len(chaos.faults)} faults; {time.monotonic() - begun:.0f} s")
    sys.exit(bool(chaos.faults))


if __name__ == "__main__":
    main()
