"""`python -m billing_pipeline.cli`: the command as a module, for the processes that `up` starts."""

from billing_pipeline.cli.main import run

if __name__ == "__main__":
    run()
