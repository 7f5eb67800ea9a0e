"""`retro evaluate`, `retro report`, `retro lm-eval`."""

import json
from pathlib import Path

from retro_jax.cli.command import CONDITIONS, PREPARED, Command, Flag
from retro_jax.cli.experiment import keep, open_work, ready
from retro_jax.errors import UserError


def _evaluate(args, fields) -> int:
    if args.task is None and (
        args.limit is not None or args.k is not None or args.align or args.vote
    ):
        raise UserError(
            "--limit, --k, --align and --vote are for an evaluation of --task=KIND:FILE"
        )
    if args.task is not None and args.conditions is not None:
        raise UserError(
            f"--conditions={args.conditions}: a task is answered with its neighbours and without; leave it out"
        )
    if args.task is not None and args.text is not None:
        raise UserError("--task and --text are two evaluations; give one of them")
    if args.task is None and args.text is None and args.name and not args.databases:
        raise UserError(
            f"--name={args.name}: is for an evaluation of --text=SOURCE or --task=KIND:FILE, or against --databases"
        )
    work = ready(open_work(args, fields))
    databases = (args.databases or "prepared").split(",")
    if args.task is not None:
        from retro_jax.evaluate import tasks

        tasks.run(
            work, args.task, args.limit, args.k, args.align, args.name, databases, args.method,
            args.vote,
        )  # fmt: skip
        return 0
    from retro_jax.evaluate import evaluate as stage
    from retro_jax.report import summary

    if args.text is None and not args.databases:
        results = stage.evaluate(keep(work))
    elif args.text is None:
        name = args.name or "-".join(name.partition("=")[0] for name in databases)
        results = stage.evaluate_against(work, databases, name)
    else:
        name = args.name or "text"
        results = {name: stage.evaluate_text(work, args.text, name, databases)}
    summary.print_evaluations({split: m["counts"] for split, m in results.items()})
    return 0


def _compare(args, fields) -> int:
    from retro_jax.cli.training import stopping
    from retro_jax.evaluate import compare, compare_tasks, items
    from retro_jax.methods.train_all import train_all
    from retro_jax.report import comparison, decision
    from retro_jax.report.write import libraries

    with libraries("retro compare"):
        from retro_jax.report import compared

    stated = decision.Stated(args.may, args.latency_ms, args.database_changes)
    if args.limit is not None and (args.task is None or args.limit < 1):
        raise UserError(f"--limit={args.limit}: is for --task=KIND:FILE, and must be at least 1")
    if args.task:
        items.read(*items.parse(args.task), args.limit)  # before anything is trained
    if args.seeds is not None and args.seeds < 1:
        raise UserError(f"--seeds={args.seeds}: must be at least 1")
    if args.task and (args.seeds or args.k):
        raise UserError("--seeds and --k are for held-out text; leave them out with --task")
    work = ready(open_work(args, fields))
    before = compare.last(work)
    args.seeds = args.seeds or (1 if args.task else before.get("seeds", 1))
    if args.methods is None and before and not args.task:
        args.methods = ",".join(before["methods"])
    methods = compare.chosen(work.experiment, args.methods)
    fewer = compare.fewer_of(work.experiment, args.k)
    keep(work)

    def run():
        if not args.task:
            decision.warn(compare.documents(work))
        for seed in range(args.seeds):
            train_all(work.seeded(seed), methods)
        if args.task:
            compare_tasks.run(work, methods, args.task, args.limit)
            return
        for split, manifest in compare.compare(work, methods, args.seeds, fewer).items():
            comparison.show(split, manifest["counts"], decision.decide(manifest["counts"], stated))
            print(compared.write(work.compared(split), stated))

    return stopping(work, run, False)


def _report(args, fields) -> int:
    from retro_jax import report

    if not args.paths:
        raise UserError("name a working directory or a tokens.parquet, for example runs/quickstart")
    if args.output and len(args.paths) < 2:
        raise UserError(
            f"--output={args.output}: is for several runs; the page of one stands beside its rows"
        )
    found = [file for path in args.paths for file in report.find(Path(path))]
    if len({file.resolve() for file in found}) < len(found):
        raise UserError(f"{' '.join(args.paths)}: the same evaluation is named twice")
    several = len(args.paths) > 1
    folder = Path(args.output or "report")
    pages = [report.reports(found, folder)] if several else map(report.report, found)
    for page in pages:
        for suffix in (".html", ".json", ".md"):
            print(page.with_suffix(suffix))
    return 0


def _lm_eval(args, fields) -> int:
    from retro_jax.store import files

    if args.tasks is None:
        raise UserError("--tasks is missing: names of tasks, for example --tasks=lambada_openai")
    if args.limit is not None and not (
        0 < args.limit < 1 or (args.limit >= 1 and args.limit % 1 == 0)
    ):
        raise UserError(
            f"--limit={args.limit:g}: must be a number of items, or a share of them between 0 and 1"
        )
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise UserError(f"--num_fewshot={args.num_fewshot}: must be 0 or more")
    work = ready(open_work(args, fields))
    try:
        from lm_eval.utils import make_table

        from retro_jax.evaluate import harness
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise UserError(
            "the lm-evaluation-harness is not installed: pip install 'retro_jax[lm-eval]'"
        ) from error
    model = harness.RetroLM(work, args.method, args.k, args.align, args.rows)
    found = harness.run(
        model, args.tasks.split(","), args.include_path, args.limit, args.num_fewshot,
        args.apply_chat_template,
    )  # fmt: skip
    print(make_table(found))
    if args.output:
        files.write(Path(args.output), json.dumps(found["results"], indent=2, default=str))
    return 0


_METHOD = Flag("--method", "the method that answers (`retro config` lists them)", str, "retro")

COMMANDS = (
    Command(
        "evaluate",
        "checkpoints to held-out bits per byte under every condition; or of any text; or of a task",
        "retro evaluate runs/mine --conditions=random,self",
        "DIR/evaluate/SPLIT with tokens.parquet and result.json; of a task, DIR/evaluate/tasks/NAME.json",
        _evaluate,
        (
            CONDITIONS,
            Flag("--text", "documents to score instead, as corpus.source"),
            Flag("--task", "lambada:FILE, choice:FILE or qa:FILE instead (docs/tasks.md)"),
            Flag("--name", "what the evaluation of --text, --task or --databases is called"),
            Flag(
                "--databases",
                "NAME,NAME=WEIGHT: what is searched, as it is now; without --text and --task for the held-out "
                "splits, to evaluate/SPLIT-NAME",
            ),
            Flag("--limit", "of --task: items", int),
            Flag("--k", "of --task: neighbours of a chunk, 0 for none", int),
            Flag(
                "--align",
                "of --task: padding before the context, so that a chunk ends with it",
                bool,
            ),
            Flag("--vote", "of --task=qa, --method=replug: an answer a document, and a vote", bool),
            _METHOD,
        ),
    ),
    Command(
        "compare",
        "methods side by side on held-out text: bits per byte, what they gain, what they cost",
        "retro compare runs/mine --methods=retro,rag,replug",
        "DIR/compare/SPLIT with report.html, report.md, tokens.parquet and summary.json",
        _compare,
        (
            PREPARED,
            Flag(
                "--methods",
                "names, with commas; by default all but variants of others; all: those too (`retro config` lists them)",
            ),
            Flag(
                "--seeds", "trainings of every method, with train.seed, + 1, ...; by default 1", int
            ),
            Flag("--k", "fewer neighbours with which to score too, for the plots: 1,2"),
            Flag("--task", "lambada:FILE, choice:FILE or qa:FILE, instead of held-out text"),
            Flag("--limit", "of --task: items", int),
            Flag(
                "--may",
                "train | logits | none: what can be done with the language model",
                str,
                "train",
            ),
            Flag("--latency-ms", "most milliseconds a token of one row; 0: any", float, 0.0),
            Flag("--database-changes", "never | daily", str, "never"),
        ),
        more="What has to be trained and is not is trained first. Without --methods and --seeds a directory's last\n"
        "comparison is told again, or gone on with.",
    ),
    Command(
        "report",
        "evaluations to pages that say whether retrieval helps, and which of several runs is better",
        "retro report runs/mine",
        "report.html, report.json and report.md beside every tokens.parquet; of several runs, one page in --output",
        _report,
        (
            Flag("paths", "a working directory, or a tokens.parquet; or several", list),
            Flag("--output", "of several: the folder of their page; by default report"),
        ),
        more="retro report runs/a runs/b puts runs on one page: which is better, and whether that can be told.\n"
        "Trainings that differ only in their seed are taken together too.",
        experiment=False,
    ),
    Command(
        "lm-eval",
        "tasks of EleutherAI's lm-evaluation-harness (pip install 'retro_jax[lm-eval]')",
        "retro lm-eval runs/mine --tasks=lambada_openai --limit=100",
        "nothing, or the file of --output",
        _lm_eval,
        (
            Flag("--tasks", "names of tasks, or files FILE.yaml, with commas"),
            Flag("--include_path", "a folder of more tasks"),
            Flag("--limit", "items of each task; below 1, their share", float),
            Flag("--num_fewshot", "examples before each item; by default as the task says", int),
            Flag("--apply_chat_template", "each item is a message, by the model's template", bool),
            Flag("--k", "neighbours of a chunk, 0 for none", int),
            Flag("--align", "a chunk ends where the context does", bool),
            Flag("--rows", "texts of a batch", int),
            Flag("--output", "a file for the results, as JSON"),
            _METHOD,
        ),
    ),
)
