"""A part of the drop-in suite with the real node as the daemon. The whole: ``LCP_TEST_NODE=grpc`` with ``tests/system/test_drop_in.py``."""

from tests.system.test_drop_in import (  # noqa: F401 - collected here again
    node,
    port,
    served,
    test_a_client_that_goes_away_has_its_job_cancelled,
    test_a_job_leaves_one_log_line_with_openai_serves_fields,
    test_a_streams_bytes_come_back_unchanged,
    test_each_grpc_status_of_a_quote_has_its_http_status,
    test_headers_name_the_peer_the_job_the_price_and_the_terms,
    test_the_requests_bytes_go_through_unchanged,
    test_the_results_bytes_come_back_unchanged,
)

NODE = "grpc"
