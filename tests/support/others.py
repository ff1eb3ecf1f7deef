"""Stands in for the other gateways of a shared Redis: they hold no quotes and know no jobs."""


class OtherGateways:
    """The part of ``SharedPurchases`` that is not about claims."""

    is_counted = False

    async def hold_quote(self, _order, _held):
        return False

    async def find_quote(self, _name):
        return None

    async def drop_quote(self, _name):
        return False

    async def name_job(self, _order, _keys, job_id):
        return job_id

    async def forget_job(self, _order, _keys, _job_id):
        return None
