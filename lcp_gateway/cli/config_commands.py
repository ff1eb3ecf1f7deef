"""``lcp-gateway config``: what is configured, whether it can be, and a file to begin with."""

from lcp_gateway.cli.config_check import check
from lcp_gateway.cli.config_generate import generate
from lcp_gateway.cli.config_show import show
from lcp_gateway.cli.grouped_help import GroupedHelp
from lcp_gateway.cli.groups import command_group

app = command_group("Look at the configuration, check it, and write a file to begin with.")
app.command(cls=GroupedHelp)(show)
for command in (check, generate):
    app.command()(command)
