"""Where the tool descriptions of tests/data/tool_search come from: public MCP servers, by version.

A server is started without an account: its settings are dummies, good enough for `tools/list`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NOWHERE = "http://127.0.0.1:9"
KEY = "0" * 40
OAUTH_KEYS = (
    '{"installed": {"client_id": "a", "client_secret": "a", "redirect_uris": ["http://localhost"]}}'
)

# What a package's LICENSE file or README says where its metadata does not.
LICENCES = {
    "datadog": "Apache-2.0",
    "everything": "MIT",
    "filesystem": "MIT",
    "flightradar": "MIT",
    "jenkins": "MIT",
    "jira": "MIT",
    "memory": "MIT",
    "sequential-thinking": "MIT",
    "sqlite": "MIT",
}


@dataclass(frozen=True)
class Source:
    """One MCP server in a package registry, and what it has to be told before it lists its tools.

    ``{folder}`` in arguments and environment is the server's own home, in which ``files`` are.
    ``also`` is installed with the package, to hold back what has become too new for it.
    """

    server: str
    registry: str
    package: str
    version: str
    arguments: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()


def npm(server: str, package: str, version: str, *arguments: str, **env: str) -> Source:
    return Source(server, "npm", package, version, arguments, env)


def pypi(server: str, package: str, version: str, *arguments: str, **env: str) -> Source:
    return Source(server, "pypi", package, version, arguments, env)


def official(server: str, *arguments: str) -> Source:
    package = f"@modelcontextprotocol/server-{server}"
    return Source(server, "npm", package, "2026.8.31", arguments)


SOURCES = (
    npm("airbnb", "@openbnb/mcp-server-airbnb", "0.3.0"),
    npm("airtable", "airtable-mcp-server", "1.14.0", AIRTABLE_API_KEY=f"pat{KEY}.{KEY}"),
    npm("argocd", "argocd-mcp", "0.9.0", "stdio", ARGOCD_BASE_URL=NOWHERE, ARGOCD_API_TOKEN=KEY),
    npm("asana", "@roychri/mcp-server-asana", "1.8.0", ASANA_ACCESS_TOKEN=KEY),
    npm("azure", "@azure/mcp", "2.0.5", "server", "start"),
    npm("bitbucket", "@aashari/mcp-server-atlassian-bitbucket", "3.1.0"),
    npm("brave-search", "@brave/brave-search-mcp-server", "2.1.4", BRAVE_API_KEY=KEY),
    npm(
        "browserstack",
        "@browserstack/mcp-server",
        "1.4.2",
        BROWSERSTACK_USERNAME="a",
        BROWSERSTACK_ACCESS_KEY=KEY,
    ),
    npm("charts", "@antv/mcp-server-chart", "0.9.10"),
    npm("chrome-devtools", "chrome-devtools-mcp", "1.11.0"),
    npm("circleci", "@circleci/mcp-server-circleci", "0.20.0", CIRCLECI_TOKEN=KEY),
    npm(
        "cloudflare",
        "@cloudflare/mcp-server-cloudflare",
        "0.2.0",
        "run",
        KEY,
        CLOUDFLARE_API_TOKEN=KEY,
        CLOUDFLARE_ACCOUNT_ID=KEY,
    ),
    npm(
        "contentful",
        "@ivotoby/contentful-management-mcp-server",
        "1.21.0",
        CONTENTFUL_MANAGEMENT_ACCESS_TOKEN=KEY,
        SPACE_ID="a",
        ENVIRONMENT_ID="master",
    ),
    npm(
        "datadog", "@winor30/mcp-server-datadog", "1.8.0", DATADOG_API_KEY=KEY, DATADOG_APP_KEY=KEY
    ),
    npm(
        "digitalocean",
        "@digitalocean/mcp",
        "1.0.70",
        "--services",
        "apps,databases,droplets",
        DIGITALOCEAN_API_TOKEN=KEY,
    ),
    npm("discord", "mcp-discord", "1.3.4", DISCORD_TOKEN=KEY),
    npm("drawio", "drawio-mcp-server", "2.3.0"),
    npm(
        "elasticsearch",
        "@elastic/mcp-server-elasticsearch",
        "0.3.1",
        ES_URL=NOWHERE,
        ES_API_KEY=KEY,
    ),
    official("everything"),
    npm("figma", "figma-developer-mcp", "0.13.2", "--stdio", FIGMA_API_KEY=KEY),
    official("filesystem", "{folder}"),
    npm("flightradar", "flightradar-mcp-server", "0.1.2", AVIATIONSTACK_API_KEY=KEY),
    npm(
        "github",
        "@modelcontextprotocol/server-github",
        "2025.4.8",
        GITHUB_PERSONAL_ACCESS_TOKEN=KEY,
    ),
    npm(
        "gitlab",
        "@zereight/mcp-gitlab",
        "2.1.64",
        GITLAB_PERSONAL_ACCESS_TOKEN=KEY,
        USE_PIPELINE="true",
        USE_MILESTONE="true",
        USE_GITLAB_WIKI="true",
    ),
    Source(
        "gmail",
        "npm",
        "@gongrzhe/server-gmail-autoauth-mcp",
        "1.1.11",
        files={".gmail-mcp/gcp-oauth.keys.json": OAUTH_KEYS},
    ),
    Source(
        "google-calendar",
        "npm",
        "@cocal/google-calendar-mcp",
        "2.6.3",
        env={"GOOGLE_OAUTH_CREDENTIALS": "{folder}/keys.json"},
        files={"keys.json": OAUTH_KEYS},
    ),
    npm("google-drive", "@piotr-agier/google-drive-mcp", "2.10.0"),
    npm(
        "google-maps", "@modelcontextprotocol/server-google-maps", "0.6.2", GOOGLE_MAPS_API_KEY=KEY
    ),
    npm("hubspot", "@hubspot/mcp-server", "0.4.0", PRIVATE_APP_ACCESS_TOKEN=KEY),
    npm("kubernetes", "mcp-server-kubernetes", "4.1.7"),
    npm(
        "line",
        "@line/line-bot-mcp-server",
        "0.5.0",
        CHANNEL_ACCESS_TOKEN=KEY,
        DESTINATION_USER_ID=KEY,
    ),
    npm("linear", "@tacticlaunch/mcp-linear", "1.4.3", LINEAR_API_TOKEN=KEY),
    npm("mapbox", "@mapbox/mcp-server", "0.14.0", MAPBOX_ACCESS_TOKEN="pk.eyJ1IjoiYSJ9.a"),
    official("memory"),
    npm(
        "mongodb",
        "mongodb-mcp-server",
        "3.0.4",
        MDB_MCP_TELEMETRY="disabled",
        MDB_MCP_API_CLIENT_ID="a",
        MDB_MCP_API_CLIENT_SECRET="a",
    ),
    npm("netlify", "@netlify/mcp", "1.15.1"),
    npm("notion", "@notionhq/notion-mcp-server", "2.5.2", NOTION_TOKEN=KEY),
    Source(
        "obsidian",
        "npm",
        "obsidian-mcp",
        "2.0.1",
        ("serve", "--vault", "notes={folder}"),
        files={".obsidian/app.json": "{}"},
    ),
    npm("playwright", "@playwright/mcp", "0.0.83"),
    npm("prometheus", "prometheus-mcp", "1.1.3", "stdio", PROMETHEUS_URL=NOWHERE),
    npm("pubmed", "@cyanheads/pubmed-mcp-server", "2.7.4"),
    npm("reddit", "reddit-mcp-buddy", "1.1.14"),
    npm(
        "salesforce",
        "@salesforce/mcp",
        "0.30.15",
        "--orgs",
        "DEFAULT_TARGET_ORG",
        "--toolsets",
        "all",
        "--no-telemetry",
    ),
    official("sequential-thinking"),
    npm(
        "shopify",
        "shopify-mcp",
        "1.0.8",
        "--accessToken",
        f"shpat_{KEY}",
        "--domain",
        "a.myshopify.com",
        SHOPIFY_ACCESS_TOKEN=f"shpat_{KEY}",
        MYSHOPIFY_DOMAIN="a.myshopify.com",
    ),
    npm("shortcut", "@shortcut/mcp", "0.25.0", SHORTCUT_API_TOKEN=KEY),
    npm(
        "slack",
        "@modelcontextprotocol/server-slack",
        "2025.4.25",
        SLACK_BOT_TOKEN="xoxb-0",
        SLACK_TEAM_ID="T0",
    ),
    npm(
        "strava",
        "@r-huijts/strava-mcp-server",
        "1.2.1",
        STRAVA_CLIENT_ID="1",
        STRAVA_CLIENT_SECRET=KEY,
    ),
    npm("stripe", "@stripe/mcp", "0.2.5", "--tools=all", "--api-key=sk_test_0000000000"),
    npm("terraform", "terraform-mcp-server", "0.13.0"),
    npm("todoist", "todoist-mcp", "1.3.4", API_KEY=KEY, TODOIST_API_KEY=KEY),
    npm("trello", "@delorenj/mcp-server-trello", "1.8.1", TRELLO_API_KEY=KEY, TRELLO_TOKEN=KEY),
    npm("vercel", "vercel-mcp", "0.0.7", f"VERCEL_API_KEY={KEY}"),
    npm("weather", "@dangahagan/weather-mcp", "1.23.0"),
    npm(
        "wordpress",
        "mcp-wordpress",
        "3.3.35",
        WORDPRESS_SITE_URL="https://wordpress.example.org",
        WORDPRESS_USERNAME="admin",
        WORDPRESS_APP_PASSWORD="abcd efgh ijkl mnop qrst uvwx",
    ),
    npm("xero", "@xeroapi/xero-mcp-server", "0.0.17", XERO_CLIENT_ID=KEY, XERO_CLIENT_SECRET=KEY),
    npm("youtube", "youtube-data-mcp-server", "1.0.16", YOUTUBE_API_KEY=KEY),
    pypi("arxiv", "arxiv-mcp-server", "0.8.2"),
    Source("chroma", "pypi", "chroma-mcp", "0.2.6", also=("pydantic<2.12", "mcp<1.20")),
    pypi(
        "clickhouse",
        "mcp-clickhouse",
        "0.7.0",
        CLICKHOUSE_HOST="127.0.0.1",
        CLICKHOUSE_USER="a",
        CLICKHOUSE_PASSWORD="a",
    ),
    pypi("cloudwatch", "awslabs-cloudwatch-mcp-server", "0.3.1", AWS_REGION="us-east-1"),
    pypi("duckduckgo", "duckduckgo-mcp-server", "0.7.0"),
    pypi("dynamodb", "awslabs-dynamodb-mcp-server", "2.1.8", AWS_REGION="us-east-1"),
    pypi(
        "aws-billing",
        "awslabs-billing-cost-management-mcp-server",
        "0.0.42",
        AWS_REGION="us-east-1",
    ),
    pypi("excel", "excel-mcp-server", "2.2.2", "stdio"),
    pypi("fetch", "mcp-server-fetch", "2026.10.24"),
    pypi("finance", "mcp-yahoo-finance", "0.2.0"),
    pypi("git", "mcp-server-git", "2026.10.19"),
    pypi("google-analytics", "analytics-mcp", "0.8.0"),
    pypi("grafana", "mcp-grafana", "2.1.1", GRAFANA_URL=NOWHERE, GRAFANA_SERVICE_ACCOUNT_TOKEN=KEY),
    pypi(
        "jenkins",
        "mcp-jenkins",
        "3.6.0",
        "--jenkins-url",
        NOWHERE,
        "--jenkins-username",
        "a",
        "--jenkins-password",
        "a",
    ),
    pypi(
        "jira",
        "mcp-atlassian",
        "0.23.1",
        JIRA_URL="https://a.atlassian.net",
        JIRA_USERNAME="a@example.org",
        JIRA_API_TOKEN=KEY,
        CONFLUENCE_URL="https://a.atlassian.net/wiki",
        CONFLUENCE_USERNAME="a@example.org",
        CONFLUENCE_API_TOKEN=KEY,
    ),
    pypi("mlflow", "mlflow-mcp", "0.4.1", MLFLOW_TRACKING_URI=NOWHERE),
    pypi(
        "opensearch",
        "opensearch-mcp-server-py",
        "0.12.0",
        OPENSEARCH_URL=NOWHERE,
        OPENSEARCH_NO_AUTH="true",
    ),
    npm(
        "postgres", "@modelcontextprotocol/server-postgres", "0.6.2", "postgresql://a@127.0.0.1:9/a"
    ),
    Source("powerpoint", "pypi", "office-powerpoint-mcp-server", "2.0.7", also=("mcp<2",)),
    pypi("redis", "redis-mcp-server", "0.5.1", "--url", "redis://127.0.0.1:9/0"),
    Source(
        "sqlite",
        "pypi",
        "mcp-server-sqlite",
        "2025.4.25",
        ("--db-path", "{folder}/a.db"),
        also=("mcp<2",),
    ),
    Source(
        "telegram",
        "pypi",
        "agent-telegram-mcp",
        "0.1.2",
        env={"TELEGRAM_BOT_TOKEN": "1:a"},
        also=("mcp<2",),
    ),
    pypi("time", "mcp-server-time", "2026.10.19"),
    pypi("wikipedia", "wikipedia-mcp", "2.0.1"),
    pypi("word", "office-word-mcp-server", "1.1.11"),
    pypi(
        "zendesk",
        "zendesk-mcp",
        "0.1.6",
        ZENDESK_SUBDOMAIN="a",
        ZENDESK_EMAIL="a@example.org",
        ZENDESK_API_KEY=KEY,
        ZENDESK_API_TOKEN=KEY,
    ),
)
