"""Whatever the description of the API allows, and what it does not, is answered as it says, and never by a failure."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipelines.serve.limits import Limits
from pipelines.serve.photos import PhotosHere
from pipelines.serve.service import Service
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor
from tests.listening import listening
from tests.unit.pipelines.serve.test_app import photo

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.slow
def test_no_request_is_answered_by_a_failure_or_otherwise_than_described() -> None:
    limits = replace(Limits(), max_image_bytes=200_000, max_pixels=40_000)
    predictor = Predictor(SemanticSam.untrained("debug"), ImageSize(32, 48))
    service = Service(predictor, PhotosHere(limits), limits)
    with listening(service) as client:
        image = client.post("/api/images", content=photo()).json()["id"]
        schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == 7
        for operation in operations:

            @hypothesis.settings(
                max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
            )
            @hypothesis.given(case=operation.as_strategy())
            def probe(case: schemathesis.Case) -> None:
                if "image" in (case.path_parameters or {}):
                    case.path_parameters["image"] = image  # One that is there.
                case.validate_response(case.call(), checks=CHECKS)

            probe()
    service.thread.close()
