"""Load the six files once a day.

The role of the connection `adventureworks_aws` needs only lambda:InvokeFunction on the function: Airflow never reaches
the database. The function changes the tables in one transaction, so that a failed load leaves the rows of the day
before.
"""

from datetime import datetime, timedelta

from airflow.providers.amazon.aws.operators.lambda_function import LambdaInvokeFunctionOperator
from airflow.sdk import DAG, Param

# Lambda's limit is 15 minutes. By default, boto3 gives up after one minute and invokes the function again.
PATIENT = {"connect_timeout": 10, "read_timeout": 910, "tcp_keepalive": True, "retries": {"total_max_attempts": 1}}

with DAG(
    "adventureworks",
    description="AdventureWorks: CSVs on S3 to PostgreSQL",
    schedule="0 6 * * *",
    start_date=datetime(2024, 1, 1),
    max_active_runs=1,
    params={
        "mode": Param("replace", enum=["replace", "upsert"], description="replace removes rows that no file holds"),
        "files": Param(None, type=["null", "array"], description="such as Sales.Customer; all six when left out"),
        "allow_shrink": Param(False, type="boolean", description="tables may lose more rows than the limit allows"),
        "dialect": Param(None, type=["null", "object"], description='of the files, such as {"delimiter": ","}'),
    },
):
    LambdaInvokeFunctionOperator(
        task_id="load",
        function_name="adventureworks-load",
        payload="{{ params | tojson }}",
        # The task's log shows the function's output: counts, and the first reasons of rejects.
        log_type="Tail",
        aws_conn_id="adventureworks_aws",
        botocore_config=PATIENT,
        # After five minutes, or [core] default_task_retry_delay.
        retries=2,
        execution_timeout=timedelta(minutes=20),
    )
