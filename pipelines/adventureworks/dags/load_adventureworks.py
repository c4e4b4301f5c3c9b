"""Loads the six files once a day.

Connection `adventureworks_aws`; the role behind it needs lambda:InvokeFunction on the one function, and nothing else:
the database is the function's alone. The tables are emptied by the function, within the transaction that fills them,
so that a load that fails leaves the rows of the day before.
"""

from datetime import datetime, timedelta

from airflow.providers.amazon.aws.operators.lambda_function import LambdaInvokeFunctionOperator
from airflow.sdk import DAG, Param

# Lambda's own limit is 15 minutes. Without these, boto3 would give up after one minute and invoke the function again.
PATIENT = {"connect_timeout": 10, "read_timeout": 910, "tcp_keepalive": True, "retries": {"total_max_attempts": 1}}

with DAG(
    "adventureworks",
    description="AdventureWorks: CSVs on S3 to PostgreSQL",
    schedule="0 6 * * *",
    start_date=datetime(2024, 1, 1),
    catchup=False,
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
        # The function's lines, with the counts and the first reasons to reject rows, are in the task's log.
        log_type="Tail",
        aws_conn_id="adventureworks_aws",
        botocore_config=PATIENT,
        # After Airflow's own delay: five minutes, unless [core] default_task_retry_delay says otherwise.
        retries=2,
        execution_timeout=timedelta(minutes=20),
    )
