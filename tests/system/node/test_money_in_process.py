"""The books after a mixed load, with a real node in the gateway's process."""

from tests.system.test_money import (  # noqa: F401 - collected here again
    loaded,
    test_clients_that_left_are_logged_with_their_payment,
    test_every_quote_is_in_the_histogram_of_prices,
    test_no_answer_says_that_nothing_was_paid_when_something_was,
    test_no_job_was_accepted_twice,
    test_the_log_says_the_same_of_every_job,
    test_the_metrics_and_the_wallet_agree,
    test_the_metrics_count_each_payment_once,
    test_what_was_paid_and_never_came_is_counted,
)

NODE = "in-process"
