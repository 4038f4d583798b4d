"""Airflow: score the reviews of a day on a Ray cluster. Needs apache-airflow-providers-google and ray[default].

Variables of Airflow: `ray_address` (http://HEAD:8265), `reviews`, `scored`. The worker's environment needs
RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as the cluster has it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow import DAG
from airflow.exceptions import AirflowException, AirflowFailException
from airflow.providers.google.cloud.operators.ray import RaySubmitJobOperator

CONFIG = "jobs/configs/nightly.yaml"
TRY_AGAIN = (7, 130)  # infrastructure; interrupted
MEANING = {1: "a bug", 2: "configuration", 4: "conflict", 6: "data refused", 7: "infrastructure"}
MEANING |= {8: "release gate or drift", 130: "interrupted", None: "the driver left none"}


class BertrayJob(RaySubmitJobOperator):
    """A job of bertray; fails for good where the same command would end in the same way again, or somebody stopped it.

    The operator of the provider waits for the end of a job and succeeds whatever the job's status is.
    """

    def execute(self, context: Any) -> str:
        job_id: str = super().execute(context)
        from ray.job_submission import JobSubmissionClient

        details = JobSubmissionClient(self.cluster_address).get_job_info(job_id)
        if str(details.status) == "SUCCEEDED":
            return job_id
        code = details.driver_exit_code
        said = f"{job_id}: {details.status}, exit {code} ({MEANING.get(code, 'unknown')}): {details.message}"
        was_stopped = str(details.status) == "STOPPED"  # by a person, who does not want it to begin again
        if not was_stopped and (code is None or code in TRY_AGAIN):  # None: the head or the driver was lost
            raise AirflowException(said)
        raise AirflowFailException(said)


with DAG(
    "bertray_nightly",
    schedule="30 2 * * *",
    start_date=datetime(2026, 11, 1),
    catchup=False,  # a run scores whatever is new: missed nights need no runs of their own
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
):
    BertrayJob(
        task_id="score",
        cluster_address="{{ var.value.ray_address }}",
        # A submission id can be used once: each try has its own.
        submission_id="bertray-{{ ds_nodash }}-{{ ti.try_number }}",
        entrypoint=f"python jobs/score.py -c {CONFIG} "
        "input={{ var.value.reviews }} output={{ var.value.scored }}",
        runtime_env={"working_dir": "/opt/bertray", "excludes": [".git", ".venv", "demo-run", "runs"]},
        wait_for_job_done=True,
        get_job_logs=True,  # the last line has the exit code and the remedy
        submit_job_timeout=4 * 3600,
    )
