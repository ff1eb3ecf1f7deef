"""A part of the suite of failures with a real node in the gateway's process. The whole: ``LCP_TEST_NODE=in-process``."""

from tests.system.test_failures import (  # noqa: F401 - collected here again
    ask,
    patient,
    short_jobs,
    test_a_failed_execution_says_what_was_paid,
    test_a_peer_that_is_not_ready_yet_is_asked_again_by_the_gateway,
    test_a_result_that_is_not_whole_and_right_is_an_error,
    test_a_stream_that_fails_never_ends_cleanly,
)

NODE = "in-process"
