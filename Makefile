# The ways in. `make setup` needs Python 3.11 and pip, nothing else.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# where this is set, each process would compile torch and MLflow anew: 7 of the 12 s that importing them takes
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test lint docs lock dist server image push image-test sbom audit

setup: .venv/installed

.venv/installed: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv .venv
	# compiling all packages at once takes longer than the rest; what is used is compiled at its first import
	pip install --quiet --no-deps --no-compile --requirement requirements-dev.lock
	pip install --quiet --no-deps --editable .
	@touch $@

demo: setup
	dvc repro
	@echo "Look at reports/index.html"

# three at a time, a thread each: most tests wait for processes they start; in the order of tests/conftest.py
test: setup
	OMP_NUM_THREADS=1 pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: setup
	ruff format --check .
	ruff check .
	mypy
	hadolint Dockerfile

# the manual as a site, build/docs/index.html: docs/, and a reference made of the code
docs: setup
	sphinx-build --quiet --fail-on-warning --keep-going -c site docs build/docs

# MLflow before PostgreSQL and S3, with users; what it keeps is in .server/
server: setup
	python deploy/server.py

# what people install: a wheel, and the archive of sources that it is built from; the same bytes for the same commit
dist: setup
	pip install --quiet uv
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) uv build --quiet --clear --out-dir dist

# renews both locks, what runs and what developing adds; versions that are in them stay where they still fit
UV_COMPILE = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --quiet \
	--custom-compile-command "make lock"
lock: setup
	pip install --quiet uv
	$(UV_COMPILE) --extra kubeflow --extra kaggle --extra postgres --extra search --extra hub --output-file requirements.lock
	$(UV_COMPILE) --extra dev --extra all --constraint requirements.lock --output-file requirements-dev.lock

# the image of this commit; VARIANT=cpu for machines without a GPU
IMAGE ?= atelier
VARIANT ?= cuda
BASE ?= python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
BUILD = DOCKER_BUILDKIT=1 docker build --build-arg BASE=$(BASE) --build-arg VARIANT=$(VARIANT)
image:
	$(BUILD) --build-arg REVISION=$$(git rev-parse HEAD) --build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/atelier/__init__.py) \
		--tag $(IMAGE):$$(git rev-parse --short HEAD) --tag $(IMAGE):latest .

# into the registry of IMAGE=HOST/NAME; prints the name by digest, which `atelier pipeline` takes
push: image
	docker push --quiet --all-tags $(IMAGE) > /dev/null
	@docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' $(IMAGE):latest | grep '^$(IMAGE)@'

image-test: setup
	pytest -m docker

# every package in the image with its version and licence, as CycloneDX: sbom.json
sbom:
	$(BUILD) --target sbom --output type=local,dest=. .

# known vulnerabilities of what runs; needs the index's database
audit:
	$(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip
