"""`ptm`, the program: every command calls one function elsewhere."""

from __future__ import annotations

import sys

import typer

from data_pipeline.errors import UserError
from launcher.commands import checkpoint, data, demo, doctor, fill, generate, jobs, report, submit, tokenizer, train

app = typer.Typer(
    name="ptm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distributed pretraining: from raw text to a trained model, on any layout.",
)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(data.app, name="data")
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("submit", epilog=submit.EXAMPLES)(submit.submit)
app.command("status", epilog=jobs.STATUS_EXAMPLES)(jobs.status)
app.command("logs", epilog=jobs.LOGS_EXAMPLES)(jobs.logs)
app.command("stop", epilog=jobs.STOP_EXAMPLES)(jobs.stop)
app.command("report", epilog=report.EXAMPLES)(report.report)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("generate", epilog=generate.EXAMPLES)(generate.generate)
app.command("fill", epilog=fill.EXAMPLES)(fill.fill)
app.add_typer(checkpoint.app, name="checkpoint")
app.command("demo", epilog=demo.EXAMPLES)(demo.demo)


def main() -> None:
    """Run `ptm`; a user's mistake ends it with one message and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
