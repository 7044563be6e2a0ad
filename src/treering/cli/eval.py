"""``treering eval …``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli import arguments
from treering.cli.completion import offered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

app = typer.Typer(
    no_args_is_help=True,
    help=arguments.with_example(
        "Measure models: every result with an interval.",
        "eval bits fi joined --data data-fi",
    ),
)


@app.command()
def bits(
    models: Annotated[list[str], typer.Argument(help="experts and compositions: DIR, NAME=DIR, or hub:NAME")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: every document of a file; any format data prepare reads"),
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="a prepared corpus: its held-out documents, by source")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="documents per text at most, the first ones")] = None,
    uniform: Annotated[bool, typer.Option(help="add the baseline that knows nothing")] = True,
    output: arguments.Page = None,
    json: Annotated[bool, typer.Option("--json", help="rows as JSON instead of a table")] = False,
    trust_remote_code: arguments.TrustRemoteCode = False,
) -> None:
    """Bits per byte on held-out documents, with a 95% interval (bootstrap over documents).

    Example: treering eval bits fi joined hub:HuggingFaceTB/SmolLM2-135M --data data-fi --text news=news.txt
    """
    from rich import print_json

    from treering.cli.console import print_table, progress, results
    from treering.composition import load_model
    from treering.evaluation import Row, as_table, bits_per_byte, uniform_bits_per_byte
    from treering.report import as_html, write_page
    from treering.report.measures import bits_report
    from treering.tokenizer import identity, load

    page = arguments.page(output)
    texts = arguments.texts_to_measure(text, data, limit)
    console = progress()
    rows: list[Row] = []
    known: dict[str, tuple[str, PreTrainedTokenizerFast]] = {}
    for entry in models:
        name, path = arguments.named(entry)
        tokenizer = load(path, trust_remote_code)
        known.setdefault(identity(tokenizer), (name, tokenizer))
        with console.status(f"measuring {path} …"):
            model = load_model(path, trust_remote_code=trust_remote_code)
            rows += bits_per_byte(name, model, tokenizer, texts)
    if uniform:
        labels = ["uniform"] if len(known) == 1 else [f"uniform over {name}'s tokens" for name, _ in known.values()]
        guessed = zip(labels, known.values(), strict=True)
        rows = [row for label, (_, own) in guessed for row in uniform_bits_per_byte(own, texts, label)] + rows
    if page:
        write_page(page, as_html(bits_report(rows, arguments.command())))
    if json:
        print_json(data=rows)
    else:
        print_table(results(), as_table(rows))


@app.command()
def forgetting(
    composition: Annotated[str, typer.Argument(metavar="DIR", help="a composition")],
    data: Annotated[list[str] | None, typer.Option(help="a prepared corpus: its held-out documents, by source")] = None,
    text: Annotated[list[str] | None, typer.Option(help="NAME=FILE: every document of a file")] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(help="EXPERT=TEXT: a text of an expert's own language; known of experts that Treering trained"),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=offered("rule"), help="a rule to compare, again for each; without any, all that are ready"
        ),
    ] = None,
    switched: Annotated[
        bool, typer.Option(help="also pages that change language with every paragraph, from pages that corpora share")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="documents per text at most, the first ones")] = None,
    output: arguments.Page = None,
    json: Annotated[bool, typer.Option("--json", help="rows and differences as JSON instead of tables")] = False,
) -> None:
    """What joining costs each expert in its own language, and what it gains, rule by rule, with 95% intervals.

    Example: treering eval forgetting joined --data data-fi --data data-hu --rule mean --rule evidence
    """
    from rich import print_json

    from treering.cli.console import plain, print_table, progress, results
    from treering.composition import load_model
    from treering.evaluation import as_change_table, as_table, code_switched, measure_forgetting, require_composition
    from treering.evaluation.forgetting import own_texts
    from treering.report import as_html, write_page
    from treering.report.measures import forgetting_report
    from treering.tokenizer import load

    page = arguments.page(output)
    model, tokenizer = require_composition(load_model(composition)), load(composition)
    texts = arguments.texts_to_measure(text, data, limit)
    extra = {"switched": code_switched(data or [])[:limit]} if switched else {}
    told = arguments.own_texts(own)
    console = progress()
    with console.status(f"measuring {composition} …"):
        measured = measure_forgetting(model, tokenizer, texts, rule, told, extra)
    if without := [name for name, its in own_texts(model, texts, told).items() if not its]:
        console.print(
            plain(f"No text is known to be {', '.join(without)}'s own; where one is, say --own {without[0]}=TEXT.")
        )
    if page:
        report = forgetting_report(measured.rows, measured.differences, str(model.rule), arguments.command())
        write_page(page, as_html(report))
    if json:
        print_json(data={"rows": measured.rows, "differences": measured.differences})
        return
    out = results()
    print_table(out, as_table(measured.rows))
    out.print()
    print_table(out, as_change_table(measured.differences))


@app.command()
def abilities(
    models: Annotated[list[str], typer.Argument(help="directories or NAME=DIR: models, or a grown one's stages/N")],
    data: Annotated[
        list[str] | None, typer.Option(help="prepared corpus whose held-out documents are measured, each source apart")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="file to measure on, as NAME=FILE or FILE")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="documents per text")] = None,
    output: arguments.Page = None,
    json: Annotated[bool, typer.Option("--json", help="rows as JSON instead of a table")] = False,
    trust_remote_code: arguments.TrustRemoteCode = False,
) -> None:
    """What small models can do: bits per byte, which paragraph comes next, a value stated before (chance 25%).

    Example: treering eval abilities fi-grown/stages/* --data data-fi --limit 50
    """
    from rich import print_json

    from treering.cli.console import print_table, progress, results
    from treering.composition import load_model
    from treering.evaluation import Ability, as_abilities_table
    from treering.evaluation import abilities as measure
    from treering.report import as_html, write_page
    from treering.report.measures import abilities_report
    from treering.tokenizer import load

    page = arguments.page(output)
    texts = arguments.texts_to_measure(text, data, limit)
    found: list[Ability] = []
    for entry in models:
        name, path = arguments.named(entry)
        with progress().status(f"measuring {path} …"):
            model = load_model(path, trust_remote_code=trust_remote_code)
            found += measure(name, model, load(path, trust_remote_code), texts)
    if page:
        write_page(page, as_html(abilities_report(found, arguments.command())))
    if json:
        print_json(data=found)
    else:
        print_table(results(), as_abilities_table(found))


@app.command()
def tasks(
    models: Annotated[list[str], typer.Argument(help="models and compositions: DIR, NAME=DIR, hub:NAME, FILE.gguf")],
    tasks: Annotated[str, typer.Option(help="lm-eval's tasks, groups and tags, with commas; patterns as 'mmlu_*' too")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="question sets on disk: ORGANISATION/NAME as on the hub, and BIG-bench's NAME.json, which are the "
            "tasks bigbench_NAME",
        ),
    ] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="examples before a question, not the task's own")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="questions per task at most, the first ones")] = None,
    rule: Annotated[
        str | None,
        typer.Option(autocompletion=offered("rule"), help="joins the experts of compositions, not their own rule"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="where models run; a GPU if there is one")] = None,
    output: arguments.Page = None,
    json: Annotated[bool, typer.Option("--json", help="rows as JSON instead of a table")] = False,
    trust_remote_code: arguments.TrustRemoteCode = False,
) -> None:
    """lm-eval's own tasks (MMLU, ARC, BoolQ …), scored as lm-eval does, with 95% intervals.

    Example: treering eval tasks expert=expert-ru joined --tasks arc_easy,boolq --limit 100
    """
    from rich import print_json

    from treering.cli.console import caution, print_table, progress, results
    from treering.composition import load_model
    from treering.evaluation.harness import TaskScore, as_tasks_table, evaluate_tasks, require_tasks, too_few_questions
    from treering.report import as_html, write_page
    from treering.report.measures import tasks_report
    from treering.tokenizer import load

    page = arguments.page(output)
    chosen = arguments.listed(tasks)
    require_tasks(chosen, data)
    console = progress()
    rows: list[TaskScore] = []
    for entry in models:
        name, path = arguments.named(entry)
        console.print(f"measuring {path}", highlight=False, markup=False)
        model = load_model(path, rule=rule, trust_remote_code=trust_remote_code)
        rows += evaluate_tasks(name, model, load(path, trust_remote_code), chosen, data, shots, limit, device).scores
    if page:
        write_page(page, as_html(tasks_report(rows, arguments.command())))
    if json:
        print_json(data=rows)
    else:
        print_table(results(), as_tasks_table(rows))
    if few := too_few_questions(rows):
        caution(few)


@app.command()
def paper(
    models: Annotated[list[str], typer.Argument(help="models and compositions: DIR, NAME=DIR, hub:NAME, FILE.gguf")],
    exams: Annotated[str, typer.Option(help="with commas; all if not given")] = "",
    like: Annotated[
        str | None, typer.Option(metavar="NAME", help="a model whose published figures stand beside")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="question sets on disk, ORGANISATION/NAME")] = None,
    runs: Annotated[int, typer.Option(min=1, help="each draws its own questions")] = 10,
    samples: Annotated[int | None, typer.Option(min=1, help="questions of a run, not the protocol's number")] = None,
    output: arguments.Page = None,
    json: Annotated[bool, typer.Option("--json", help="rows as JSON instead of a table")] = False,
    trust_remote_code: arguments.TrustRemoteCode = False,
) -> None:
    """The paper's own protocol: greedy, the first character is the answer; not comparable with standard scores.

    Example: treering eval paper joined --exams paper_mmlu,paper_squad --like best_bvv_moe
    """
    from rich import print_json

    from treering.cli.console import print_table, progress, results
    from treering.composition import load_model
    from treering.evaluation.harness import require_lm_eval
    from treering.evaluation.harness.paper import EXAMS, PaperScore, as_paper_table, paper_protocol
    from treering.report import as_html, write_page
    from treering.report.measures import paper_report
    from treering.tokenizer import load

    page = arguments.page(output)
    require_lm_eval()
    chosen = arguments.listed(exams) or list(EXAMS)
    rows: list[PaperScore] = []
    for entry in models:
        name, path = arguments.named(entry)
        with progress().status(f"measuring {path} …") as status:
            model = load_model(path, trust_remote_code=trust_remote_code)
            tokenizer = load(path, trust_remote_code)
            rows += paper_protocol(
                name, model, tokenizer, chosen, data, like, runs, samples, lambda exam: status.update(exam)
            )
    if page:
        write_page(page, as_html(paper_report(rows, arguments.command())))
    if json:
        print_json(data=rows)
    else:
        print_table(results(), as_paper_table(rows))


def lm_eval(arguments: typer.Context) -> None:
    """lm-eval's own command line, to which --model treering --model_args pretrained=DIR is known.

    Example: treering lm-eval run --model treering --model_args pretrained=joined,rule=evidence --tasks boolq
    """
    import os
    import sys

    from treering.evaluation.harness import require_lm_eval

    require_lm_eval()
    os.environ.pop("TQDM_DISABLE", None)  # its own command line shows its own bars
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *arguments.args]
    cli_evaluate()
