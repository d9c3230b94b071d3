"""A Kubeflow Pipelines server: calls that try again, and that never make a thing twice."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import kfp_server_api
import urllib3

from atelier.errors import AtelierError, InputError

T = TypeVar("T")

TIMEOUT_SECONDS = 30  # the client ignores what is not an int
ATTEMPTS = 6
FIRST_WAIT_SECONDS = 1.0
PAGE_SIZE = 100


class _Client(kfp_server_api.ApiClient):  # type: ignore[misc]
    """The generated client, which fails in its own code on what is no answer of this API."""

    def request(self, *arguments: Any, **options: Any) -> Any:
        """Make one request.

        Raises:
            AtelierError: if the server is not trusted, or something before it answers.
        """
        host = self.configuration.host
        try:
            response = super().request(*arguments, **options)
        except kfp_server_api.ApiException as error:
            if not error.status:  # of TLS
                reason = str(error.reason).splitlines()[-1]
                raise AtelierError(f"{host}: {reason}; name the certificate of its authority: --ca-cert FILE") from None
            error.body = (error.body or b"").decode(errors="replace").encode()
            raise
        try:
            is_object = isinstance(json.loads(response.data), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise _no_answer(host, response.getheader("Content-Type") or "nothing")
        return response


class Server:
    """Experiments, pipelines, runs and recurring runs of one server, by the names we give them.

    Args:
        host: of the API, such as http://localhost:8888; KF_PIPELINES_ENDPOINT if empty.
        namespace: of the profile, on a server for several users.
        ca_cert: file with the certificate that the server's is signed by, if that is a company's own; those that
            SSL_CERT_FILE or REQUESTS_CA_BUNDLE name are trusted, too.

    KF_PIPELINES_TOKEN in the environment is sent as a bearer token.
    """

    def __init__(self, host: str | None, namespace: str | None = None, ca_cert: Path | None = None) -> None:
        host = host or os.environ.get("KF_PIPELINES_ENDPOINT")
        if not host:
            raise InputError("no server: give --host http://…, or set KF_PIPELINES_ENDPOINT")
        if "@" in host:
            raise InputError("--host: names a user; leave that out, and set KF_PIPELINES_TOKEN")
        if not host.startswith(("http://", "https://")):
            raise InputError(f"--host {host}: must begin with http:// or https://")
        self.host, self.namespace = host.rstrip("/"), namespace
        configuration = kfp_server_api.Configuration(host=self.host)
        configuration.retries = False  # all tries are made here, where it is known what may be repeated
        if token := _token():
            configuration.api_key = {"authorization": token}
            configuration.api_key_prefix = {"authorization": "Bearer"}
        client = _Client(configuration)
        if host.startswith("https://"):
            client.rest_client.pool_manager.connection_pool_kw["ssl_context"] = _trust(ca_cert)
        self.experiments = kfp_server_api.ExperimentServiceApi(client)
        self.pipelines = kfp_server_api.PipelineServiceApi(client)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(client)
        self.runs = kfp_server_api.RunServiceApi(client)
        self.recurring_runs = kfp_server_api.RecurringRunServiceApi(client)

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Make a call that may be repeated, until it is answered.

        Raises:
            AtelierError: if the server refuses, or does not answer in `ATTEMPTS` tries.
        """
        return self.create(lambda: None, function, *arguments, **options)

    def create(self, find: Callable[[], T | None], make: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Make a thing, or find it: an answer may be lost although the server has done what it was asked."""
        wait = FIRST_WAIT_SECONDS
        for attempt in range(ATTEMPTS):
            if (found := find()) is not None:
                return found
            try:
                return make(*arguments, _request_timeout=TIMEOUT_SECONDS, **options)
            except kfp_server_api.ApiException as error:
                problem = f"{error.status} {error.reason}: {_message(error)}"
                conflict = error.status == 409 and attempt + 1 < ATTEMPTS  # someone else made it: it will be found
                if error.status < 500 and error.status != 429 and not conflict:
                    raise _refusal(self.host, error, problem) from None
            except (urllib3.exceptions.HTTPError, OSError) as error:
                problem = str(error)[:200]
            except (TypeError, ValueError, AttributeError, KeyError):  # of the generated client
                raise _no_answer(self.host, "JSON") from None
            if attempt + 1 < ATTEMPTS:
                time.sleep(wait)
                wait *= 2
        raise AtelierError(f"{self.host}: no answer in {ATTEMPTS} tries ({problem}); look whether the server is well")

    def pages(self, function: Callable[..., Any], field: str, **options: Any) -> Iterator[Any]:
        """Every item of a list that comes in pages."""
        token = ""
        while True:
            page = self.call(function, page_size=PAGE_SIZE, page_token=token, **options)
            yield from getattr(page, field) or []
            token = page.next_page_token
            if not token:
                return

    def experiment(self, name: str) -> Any:
        """The experiment of a name, made if there is none."""
        scope = {"namespace": self.namespace} if self.namespace else {}
        listing = self.experiments.experiment_service_list_experiments

        def find() -> Any:
            return next(self.pages(listing, "experiments", filter=_named(name), **scope), None)

        new = kfp_server_api.V2beta1Experiment(display_name=name, **scope)
        return self.create(find, self.experiments.experiment_service_create_experiment, new)

    def pipeline_version(self, name: str, version: str, file: str) -> Any:
        """The version of a pipeline, uploaded from a file if the server does not have it."""
        scope = {"namespace": self.namespace} if self.namespace else {}

        def find_pipeline() -> Any:
            listing = self.pipelines.pipeline_service_list_pipelines
            return next(self.pages(listing, "pipelines", filter=_named(name), **scope), None)

        # made empty: with a file, the server would keep that twice, once as a version of the pipeline's own name
        new = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, **scope)
        pipeline = self.create(find_pipeline, self.pipelines.pipeline_service_create_pipeline, new)

        def find_version() -> Any:
            listing = self.pipelines.pipeline_service_list_pipeline_versions
            versions = self.pages(
                listing, "pipeline_versions", pipeline_id=pipeline.pipeline_id, filter=_named(version)
            )
            return next(versions, None)

        upload = self.uploads.upload_pipeline_version
        options = {"name": version, "display_name": version, "pipelineid": pipeline.pipeline_id}
        return self.create(find_version, upload, file, **options)

    def run(self, name: str, experiment: Any, version: Any, parameters: dict[str, Any], account: str | None) -> Any:
        """Start a run; `name` must be of this run alone, by it the run is found again."""

        def find() -> Any:
            listing = self.runs.run_service_list_runs
            runs = self.pages(listing, "runs", experiment_id=experiment.experiment_id, filter=_named(name))
            return next(runs, None)

        new = kfp_server_api.V2beta1Run(
            display_name=name,
            experiment_id=experiment.experiment_id,
            pipeline_version_reference=reference(version),
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=parameters),
            service_account=account,
        )
        return self.create(find, self.runs.run_service_create_run, new)


def _token() -> str:
    """KF_PIPELINES_TOKEN as it is sent: files end in a line feed, and some write the scheme before it."""
    name = "KF_PIPELINES_TOKEN"
    token = os.environ.get(name, "").strip()
    if token[:7].lower() == "bearer ":
        token = token[7:].strip()
    if not (token.isascii() and all(letter.isprintable() and letter != " " for letter in token)):
        raise InputError(
            f"{name}: no token, it holds what a header cannot; set it to what your log-in gives, or unset it"
        )
    return token


def _trust(ca_cert: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()  # trusts those of the system, or of SSL_CERT_FILE
    for name, file in (("--ca-cert", ca_cert), ("REQUESTS_CA_BUNDLE", os.environ.get("REQUESTS_CA_BUNDLE"))):
        if file:
            try:
                context.load_verify_locations(file)
            except (OSError, ValueError):
                raise InputError(f"{name} {file}: no file of certificates (PEM)") from None
    return context


def _no_answer(host: str, kind: str) -> AtelierError:
    return AtelierError(
        f"{host}: answers with {kind}, not as Kubeflow Pipelines does; is it a log-in page? Log in, set "
        "KF_PIPELINES_TOKEN, and give the address of the API"
    )


def reference(version: Any) -> Any:
    """How a run names its pipeline: always by version, else it would be whichever is the latest when it starts."""
    return kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
    )


def _named(name: str) -> str:
    """The filter for things of one display name, as the SDK writes it: operation 1 is EQUALS."""
    return json.dumps({"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]})


def _message(error: Any) -> str:
    """What the server says, in one line."""
    try:
        body = json.loads(error.body)
        return str(body.get("message") or body.get("error") or "")[:300].replace("\n", " ")
    except (TypeError, ValueError, AttributeError, RecursionError):
        return str(error.body or "")[:300].replace("\n", " ")


def _refusal(host: str, error: Any, problem: str) -> AtelierError:
    if error.status in (401, 403):
        return AtelierError(f"{host}: {problem}; set KF_PIPELINES_TOKEN to a token that may do this")
    return AtelierError(f"{host}: {problem}; look whether --host is the address of Kubeflow Pipelines, and at its log")
