"""What the product promises, as data: id -> (source, sentence); each promise has a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., Any])

REQUIREMENTS: Final[dict[str, tuple[str, str]]] = {
    # --- the tests themselves (tests/unit/test_requirements.py)
    "tests:every-promise-is-tested": (
        "own decision",
        "Each promise in this table has a test, and each test names promises of this table.",
    ),
    # --- one-machine fleet (tests/integration/test_embedded.py, test_supervisor.py, tests/fleet)
    "local:embedded-data-survives": (
        "design D11",
        "What was written to the private PostgreSQL and Redis is there after a restart.",
    ),
    "local:leaves-nothing": (
        "own decision",
        "A stopped fleet leaves no process, no socket and no pid file.",
    ),
    "local:recovers-from-crash": (
        "own decision",
        "A data folder that a crash left behind is used again, its leftover servers ended first.",
    ),
    "local:any-folder": (
        "own decision",
        "Root may start a fleet in a folder that is closed to other users, such as its home.",
    ),
    "local:private-redis": (
        "own decision",
        "No other user of the machine can read the private Redis.",
    ),
    "local:restarts": (
        "own decision",
        "A child that dies is started again, each time later, and anew once it has lived a minute.",
    ),
    "local:one-worker-per-server": (
        "design 2",
        "Each registered server has its own worker processes, one unless more are asked for.",
    ),
    "local:one-fleet-per-folder": (
        "own decision",
        "A second fleet on a data folder in use is refused, and says who uses it.",
    ),
    "local:outside-servers": (
        "design D11",
        "With a database or Redis URL set, that server is used and none is started in its place.",
    ),
    "local:private-secrets": (
        "own decision",
        "Files that hold secrets are readable by their owner alone.",
    ),
    "local:prints-addresses": (
        "design D11",
        "`toolfleet up` prints where everything answers, and the key that opens it.",
    ),
    "command:call": (
        "design 5",
        "A server is registered, and one of its tools called, by commands alone.",
    ),
    "command:artifact": (
        "own decision",
        "A result that was too large for its call is fetched by a command.",
    ),
    "command:doctor": (
        "own decision",
        "A command checks every part of a fleet and says what to do about what is not well.",
    ),
    "command:governs": (
        "design 5",
        "Versions, changes, tenants, approvals and the whole registry are governed by commands.",
    ),
    "command:harmless": (
        "reliability 4.2",
        "Nothing that a command prints of a server's words acts on the terminal.",
    ),
    "command:problems": (
        "design 5",
        "A command that is refused shows code, message and hint, and ends with status 1.",
    ),
    "local:long-paths": (
        "own decision",
        "A data folder may lie deeper than a socket's path can say.",
    ),
    # --- containers (tests/unit/test_containers.py, test_container_parts.py,
    # --- tests/integration/test_redis_users.py, `make containers`)
    "containers:compose-specification": (
        "own decision",
        "compose.yaml is what the Compose specification says, and all that it mounts is there.",
    ),
    "containers:kubernetes-schema": (
        "own decision",
        "Each object of the Kubernetes example is what Kubernetes, or KEDA, says it has to be.",
    ),
    "containers:kubernetes-links": (
        "own decision",
        "What Kubernetes tells containers about services is not taken for settings.",
    ),
    "containers:bounded": (
        "own decision",
        "Containers hold no capabilities, write nothing to their root, and are hard to reach.",
    ),
    "containers:draining": (
        "guide",
        "A worker's container is killed later than its drain may last.",
    ),
    "containers:healthy": (
        "own decision",
        "A health check says whether a container's own process works, whatever others do.",
    ),
    "containers:allowed-hosts": (
        "own decision",
        "The API answers to the names by which the stack asks it, in the example of settings too.",
    ),
    "containers:scaling": (
        "own decision",
        "Workers are scaled by the length of the queue that they serve, and by its age.",
    ),
    "containers:locked": (
        "own decision",
        "The image has the versions of all dependencies that the tests ran with.",
    ),
    "containers:settings-from-files": (
        "own decision",
        "A setting may be in a file of its name; what the environment says comes first.",
    ),
    "containers:secrets": (
        "own decision",
        "The secrets of a fleet in containers are made once; Redis is told hashes of passwords.",
    ),
    "containers:first-key": (
        "own decision",
        "`toolfleet migrate` makes a key that was made before an operator's, once and for all.",
    ),
    "containers:redis-users": (
        "own decision",
        "Each part of the fleet does its work in Redis with no more than its own user may do.",
    ),
    # --- what servers have beside tools (tests/integration/test_passage.py, unit/test_uris.py)
    "passage:lists": (
        "guide",
        "Resources, templates and prompts are listed under prefixed names and URIs, pages bounded.",
    ),
    "passage:uris": (
        "own decision",
        "A shown URI, or what a shown template expands to, leads back to the server's own.",
    ),
    "passage:requests": (
        "guide",
        "Resources are read, prompts are got and arguments completed by the server they are of.",
    ),
    "passage:policy": (
        "guide",
        "What a tenant may not ask of a server it neither sees nor gets, by server and by method.",
    ),
    "passage:audit": (
        "guide",
        "What is asked of a server beside its tools is a call, with the audit of one.",
    ),
    "passage:redaction": (
        "guide",
        "Resources and prompts are redacted as results of tools are.",
    ),
    "passage:errors": (
        "guide",
        "What is unknown, or refused by its server, is told with the codes of the protocol.",
    ),
    "passage:subscriptions": (
        "guide",
        "Who subscribed is told when a resource or a list changes, at whichever API it listens.",
    ),
    "passage:questions": (
        "guide",
        "A server may ask who gets a prompt or reads a resource, as it may who calls a tool.",
    ),
    "passage:large": (
        "own decision",
        "A large resource reaches its reader whole; so does a large result, by the link to it.",
    ),
    "passage:screened": (
        "own decision",
        "Prompts and resources whose descriptions hide text or instruct models are left out.",
    ),
    "passage:every-server": (
        "guide",
        "It works over stdio and HTTP, with servers of 2026-07-28 and of the revisions before.",
    ),
    "passage:tools-first": (
        "own decision",
        "A server that fails to list what else it has is served with its tools all the same.",
    ),
    # --- shared breaker (tests/unit/test_breaker.py, tests/contract/test_breaker_store.py)
    "breaker:opens-on-timeouts": (
        "guide",
        "A server's breaker opens after 10 consecutive timeouts.",
    ),
    "breaker:opens-on-failure-rate": (
        "guide",
        "A server's breaker opens when 5 % of the calls of 5 minutes failed.",
    ),
    "breaker:probes-after-30s": (
        "guide",
        "30 seconds after it opened, one call probes the server; the others wait for its verdict.",
    ),
    "breaker:legal-transitions": (
        "style, habit 2",
        "A breaker's state changes only along its table of transitions.",
    ),
    "breaker:generations": (
        "reliability B2, goal 20",
        "A late verdict of an older generation changes nothing.",
    ),
    "breaker:abstains": (
        "reliability B5, goal 21",
        "Calls that say nothing about the server never move its breaker.",
    ),
    "breaker:one-probe-per-lease": (
        "reliability B4, goal 20",
        "At most one probe per lease is out over the whole fleet; a dead prober's lease lapses.",
    ),
    "breaker:shared": (
        "design D7, goal 21",
        "What one worker process finds out about a server holds for every other.",
    ),
    "breaker:cheap": (
        "reliability B6",
        "A closed or open breaker answers from memory, and verdicts travel in groups.",
    ),
    "breaker:survives-cancel": (
        "goal 16",
        "A caller that is cancelled loses neither its verdict nor the probe's lease.",
    ),
    "breaker:redis-away": (
        "reliability B7, goal 21",
        "While Redis is away each process's own breaker protects; an open breaker stays open.",
    ),
    "breaker:one-clock": (
        "reliability B1, goal 22",
        "No worker's clock changes a breaker's decision.",
    ),
    "breaker:by-hand": (
        "reliability B8",
        "An operator can open a breaker for a time, or close it.",
    ),
    "breaker:says-why": (
        "own decision",
        "A breaker that is not closed says since when and why, whatever its probes found since.",
    ),
    # --- tending a running fleet (tests/integration/test_tending.py, tests/fleet/test_tending.py)
    "tending:breaker": (
        "reliability B8",
        "An operator forces a version's breaker for all workers; the audit says who, what and why.",
    ),
    "tending:nothing-pretended": (
        "own decision",
        "While Redis is away a breaker is not forced: the answer says so, and the audit has none.",
    ),
    "tending:workers": (
        "own decision",
        "Operators see the workers that live, with the sessions that each holds.",
    ),
    "tending:drain": (
        "own decision",
        "A worker that is drained takes nothing more and ends once what it runs has ended.",
    ),
    # --- the console's pages of the fleet (tests/unit/test_glance.py,
    #     tests/integration/test_console_fleet.py, tests/browser/test_fleet_page.py)
    "console:fleet": (
        "guide, observability",
        "Each server is shown with how it is, in words, its breaker, sessions, queue and workers.",
    ),
    "console:needs": (
        "guide, alerts",
        "What needs a person comes first, the worst before all: since when, and what to do.",
    ),
    "console:fleet-live": (
        "own decision",
        "The pages of the fleet follow it without a reload.",
    ),
    "console:pictures": (
        "own decision",
        "Pictures of figures show what is missing as missing and what is rare as there.",
    ),
    "console:cheap": (
        "own decision",
        "Ten people who watch the fleet cost as much as one.",
    ),
    "console:escaped": (
        "own decision",
        "Nothing that a server, a tenant or an operator named acts on a page.",
    ),
    "console:tend": (
        "own decision",
        "The pages' forms do what the HTTP verbs do, in the name of whoever is signed in.",
    ),
    "console:operators-only": (
        "own decision",
        "The pages and forms of the fleet are for operators.",
    ),
    # --- session pool (tests/unit/test_pool.py)
    "pool:prewarmed": (
        "guide; goal 17",
        "A started pool has min_idle sessions open, and lends one without opening any.",
    ),
    "pool:bounded": (
        "guide; reliability P2",
        "Sessions in all states together never exceed max_size.",
    ),
    "pool:fifo": (
        "reliability P5",
        "Waiters are served first come, first served.",
    ),
    "pool:refused-handover": (
        "reliability P4, goal 16; style, habit 3",
        "A waiter that gave up holds nothing, and what it was given goes to the next.",
    ),
    "pool:recycles": (
        "guide; reliability P10",
        "Sessions retire after max_calls or max_lifetime, their successors opened in time.",
    ),
    "pool:never-lends-the-unfit": (
        "reliability P8, P11",
        "A session that is dead, poisoned or discarded is never lent again.",
    ),
    "pool:keys-are-apart": (
        "design D6; reliability P1",
        "A session is lent only under the key it was opened for.",
    ),
    "pool:bounded-wait": (
        "guide; reliability P6",
        "A borrow that is not served in time ends with pool_timeout.",
    ),
    "pool:fails-fast": (
        "reliability P9",
        "While no session can be opened, borrowers fail at once and attempts back off.",
    ),
    "pool:drains": (
        "reliability P18",
        "A draining pool lends no more, lets borrowers finish, and ends empty.",
    ),
    "stop:never-the-next": (
        "reliability P13, goal 10",
        "A stop that comes when its call has just ended never hits the session's next borrower.",
    ),
    "bulkhead:neighbours": (
        "reliability P20, goal 19",
        "A server that hangs with a thousand queued calls leaves its neighbours' latency alone.",
    ),
    "pool:retires-the-grown": (
        "reliability P19",
        "A session whose server has grown beyond its pool's limits is retired after its call.",
    ),
    "pool:invariants": (
        "reliability 1.1, goal 16",
        "Whatever borrowers, sessions, limits and clocks do, and in any order, P1-P20 hold.",
    ),
    "pool:cancelled-anywhere": (
        "reliability P4, goal 16",
        "Cancelling a borrower, a return or a close at any await loses no session and no slot.",
    ),
    "pool:max-waiting": (
        "reliability 1, psycopg",
        "Beyond `max_waiting` a borrower is refused at once, and told when to come back.",
    ),
    "pool:validates": (
        "reliability P7",
        "A session idle for over half a second is probed, in bounded time, before it is lent.",
    ),
    "pool:one-proof-of-death": (
        "reliability P8",
        "One session's death puts every older session of that server to the proof, or to rest.",
    ),
    "pool:rebuild-is-paced": (
        "reliability P9, goal 18",
        "After a mass death sessions are opened again at a limited rate; hopeless waiters fail.",
    ),
    "pool:reports-leaks": (
        "reliability P16",
        "A borrower that keeps a session too long is named in the log and loses the session.",
    ),
    "pool:resizes": (
        "reliability 1, psycopg",
        "A pool is resized while it works; nothing in use is taken away.",
    ),
    "pool:resets": (
        "guide",
        "A session is reset by its server's own tool before the next borrower gets it.",
    ),
    "pool:multiplexes": (
        "design 5",
        "A session takes as many calls at once as `calls_per_session` says, and no more.",
    ),
    "pool:rotates": (
        "reliability P1",
        "A credential's rotation retires exactly the sessions that were opened with the old one.",
    ),
    "pool:spike": (
        "HikariCP, goal 17",
        "A burst is served by the sessions there are; the pool hardly grows.",
    ),
    "pool:printable": (
        "style, habit 18",
        "A pool prints its state, and the print is the figures.",
    ),
    # --- rollouts (tests/unit/test_rollouts.py, test_verdict.py, tests/fleet/test_rollouts.py)
    "rollout:share": (
        "guide",
        "Of a hundred tenants exactly the percentage see the canary, the same ones for good.",
    ),
    "rollout:pinned": (
        "guide",
        "Pinned tenants and the cohorts of feature flags see the canary whatever the percentage.",
    ),
    "rollout:names": (
        "guide",
        "The names that models call tools by never change with a server's version.",
    ),
    "rollout:states": (
        "style, habit 2",
        "A server has one active rollout at most, and that ends once, by a legal transition.",
    ),
    "rollout:verdict": (
        "peers 6.8",
        "A canary is judged by its calls beside the stable version's, beyond what chance explains.",
    ),
    "rollout:automatic": (
        "peers 6.8",
        "Where it is asked to, the verdict itself promotes or rolls back, and leaves its report.",
    ),
    "rollout:shapes": (
        "peers 6.8",
        "Results of one make have one shape, whatever they say.",
    ),
    "rollout:bad-input": (
        "own decision",
        "A rollout that is not valid is refused with the path of what is wrong.",
    ),
    # --- what tenants may do (tests/unit/test_policy.py, tests/integration/test_tenants.py)
    "policy:servers": (
        "guide",
        "A server is open to tenants and cohorts it names, and to whom an operator enabled it.",
    ),
    "policy:patterns": (
        "guide",
        "Tier and tenant both have patterns of tools; what either does not admit is denied.",
    ),
    "policy:classes": (
        "guide",
        "A tier allows, gates or denies each class of tools; the worker asks again at dispatch.",
    ),
    "policy:limits": (
        "guide",
        "A tenant may not have more calls at once or a minute, nor larger results, than its tier.",
    ),
    # --- limits (tests/unit/test_rates.py, tests/contract/test_limits.py,
    #     tests/integration/test_limits.py, test_tenants.py, test_quota.py, tests/fleet)
    "limits:rate": (
        "research goal 37",
        (
            "Any number of processes together grant a bucket's rate over any 10 seconds within "
            "1 %, and at no time more at once than it holds."
        ),
    ),
    "limits:all-or-nothing": (
        "own decision",
        "A call is taken from all of its buckets or from none; the model decides as the script.",
    ),
    "limits:clocks": (
        "research goal 22",
        "No limit, pause or lease depends on the clock of the process that asks.",
    ),
    "limits:tools": (
        "guide",
        "A tenant's calls of some tools, and a tier's calls together, have limits of their own.",
    ),
    "limits:headers": (
        "own decision",
        (
            "A caller is told where it stands (RateLimit, RateLimit-Policy), and a refused one "
            "when to come again: then it succeeds."
        ),
    ),
    "limits:charged-once": (
        "own decision",
        "What is refused, not valid or known by its idempotency key costs nothing.",
    ),
    "limits:redis-away": (
        "research goal 37",
        (
            "While Redis is away writes are refused at once and reads have the process's share of "
            "each limit; nothing is unlimited."
        ),
    ),
    "quota:pause": (
        "guide",
        (
            "A server that answers 429 is sent nothing by any worker until the time it named; the "
            "call it turned away is made again then, within its deadline."
        ),
    ),
    "quota:kept": (
        "guide",
        "No more calls reach a server than its quota allows the whole fleet, whoever calls.",
    ),
    "quota:holds-nothing": (
        "own decision",
        (
            "A call that waits for a quota holds no session and no attempt, stops at once, and "
            "keeps nobody else waiting."
        ),
    ),
    "quota:bad-input": (
        "own decision",
        "A quota that is not valid is refused with the path of what is wrong.",
    ),
    "limits:figures": (
        "own decision",
        "What limits granted and refused, and what is paused, is counted by limit and by server.",
    ),
    "policy:priority": (
        "own decision",
        "A call has the priority of its tenant's tier.",
    ),
    "policy:bad-input": (
        "own decision",
        "A tier or tenant that is not valid is refused with the path of what is wrong.",
    ),
    "policy:kept": (
        "own decision",
        "Tiers and tenants are kept, changed for all at once, and not removed while in use.",
    ),
    # --- held changes (tests/integration/test_holds.py, tests/fleet/test_rollouts.py)
    "drift:reactions": (
        "guide",
        "Each kind of change is accepted, alerted about or held, as the server's definition says.",
    ),
    "drift:held": (
        "goal 29",
        "A tool whose change is held is offered to no new run, and no call of it is dispatched.",
    ),
    "drift:decided": (
        "own decision",
        "An operator decides once about a held change; a server that goes back withdraws it.",
    ),
    "drift:screened": (
        "reliability 4",
        "A tool with hidden instructions is quarantined, one that cannot be offered is kept out.",
    ),
    "drift:new-version": (
        "guide",
        "What a new version holds back is served by the version before it, tool by tool.",
    ),
    # --- what runs are offered (tests/integration/test_offer.py)
    "offer:unchanged-is-cheap": (
        "own decision",
        "While nothing changes, a run starts without reading any server, tool or snapshot.",
    ),
    "offer:changes-at-once": (
        "guide",
        "What was committed before a run starts is what it is offered, in every process.",
    ),
    "offer:one-version": (
        "goal 29",
        "However often the registry changes, a run sees exactly one version of each tool.",
    ),
    "offer:differences": (
        "own decision",
        "How two snapshots differ is told by tool and field.",
    ),
    "offer:search": (
        "guide",
        "A run may have the tools that fit an intent, or two tools to find and call the others.",
    ),
    # --- attacks (tests/security)
    "attacks:matrix": (
        "reliability 4.2",
        "Every attack of the matrix has a test that makes it.",
    ),
    "attacks:registration": (
        "reliability 4.2, goal 33",
        "Forty hostile registrations by a tenant, and the validation of any, start no process.",
    ),
    "attacks:environment": (
        "reliability 4.2, goal 33",
        "A child's environment is the declared set exactly, and nobody declares one that loads.",
    ),
    "attacks:commands": (
        "reliability 4.2",
        "No address that a server names is opened, and no argument becomes part of a command.",
    ),
    "attacks:front-door": (
        "reliability 4.2",
        "Without a key nothing answers but health, and on loopback alone.",
    ),
    "attacks:console": (
        "guide, checklist",
        "Forged forms, sessions, links and names get nothing done and nothing run in the console.",
    ),
    "attacks:passthrough": (
        "reliability 4.2",
        "What a caller shows at the door goes no further, and the fleet issues no tokens.",
    ),
    "attacks:isolation": (
        "goal 30",
        "Whatever ids and keys collide, no tenant sees, stops or finds anything of another.",
    ),
    "attacks:poisoned-tools": (
        "reliability 4.2",
        "Every poisoned definition is held or kept out, and no text of it is shown to a tenant.",
    ),
    "attacks:rug-pull": (
        "reliability 4.2, goal 29",
        "A tool that changed by one byte is not called again where its changes are to be held.",
    ),
    "attacks:what-decides": (
        "goal 31",
        "The body decides, said once and in the tool's exact name, whatever headers say.",
    ),
    "attacks:endless": (
        "reliability 4.2, goal 24",
        "No pattern or schema of a server holds the event loop for 50 ms.",
    ),
    "attacks:memory": (
        "reliability 4.2",
        "No request and no answer fills the memory: each is bounded before it is read.",
    ),
    "attacks:sandbox": (
        "reliability 4.2",
        "Arguments outside their schema never reach a server, and one without network has none.",
    ),
    "attacks:forged-messages": (
        "goal 13",
        "No message runs what is not committed, nor twice, nor at another server's worker.",
    ),
    "attacks:inner-addresses": (
        "goal 32",
        "No spelling, name or redirect leads a request of the fleet's own to an inner address.",
    ),
    "attacks:approvals": (
        "reliability 4.2, goal 31",
        "No message, caller or forged row starts a call that waits for its approval.",
    ),
    "attacks:secrets-in-results": (
        "reliability 4.2",
        "Neither a result nor an error is stored with a secret of well-known make in it.",
    ),
    # --- secrets (tests/security/test_secrets.py, tests/unit/test_discretion.py)
    "secrets:nowhere": (
        "goal 34",
        "Fifty secrets through every way of failing lie in no log, message, answer or table.",
    ),
    "secrets:log": (
        "reliability 4.2, goal 34",
        "No line that a process logs or dies of has a secret in it, and there are no core dumps.",
    ),
    "secrets:declared": (
        "own decision",
        "What a definition's variables and headers hold is secret if their names say so.",
    ),
    # --- approvals (tests/integration/test_approvals.py)
    "approval:waits": (
        "guide",
        "A call that needs an approval waits as a row; its deadline begins when it has it.",
    ),
    "approval:once": (
        "design 4",
        "A waiting call is decided about once, by a guarded and audited transition.",
    ),
    "approval:bound": (
        "goal 31",
        "What is approved is what was shown, to the last argument, and what is then dispatched.",
    ),
    "celery:forged": (
        "reliability 4.2, goal 13",
        "Forged messages run nothing, leave the worker working, and are audited if of a call.",
    ),
    "approval:no-bypass": (
        "goal 31",
        "No call that needs an approval runs without one: none of 500 attacks, as the server saw.",
    ),
    "approval:notice": (
        "reliability 4.2",
        "A signed webhook tells of each call that waits, at least once; giving up is said.",
    ),
    "approval:rule": (
        "reliability 4.2",
        "A tool's rule says whether its calls wait, for how many, and what these do not see.",
    ),
    "approval:shown": (
        "reliability 4.2",
        "An approver sees the arguments (but what is hidden), tool, version, requester and expiry.",
    ),
    "approval:approvers": (
        "reliability 4.2",
        "Operators and approvers decide, those of one tenant about that tenant's calls alone.",
    ),
    "approval:bulk": (
        "reliability 4.2",
        "Many decisions in one request are made and answered one by one.",
    ),
    "approval:four-eyes": (
        "reliability 4.2",
        "Who asked for a call cannot approve it; where two have to, two different people have to.",
    ),
    "approval:single-use": (
        "reliability 4.2",
        "An approval lets one call run once; it covers the attempts of what may run again.",
    ),
    "approval:expires": (
        "reliability 4.2",
        "An approval that is not used in time lets nothing run, and its call says so.",
    ),
    "approval:sealed": (
        "own decision",
        "Decisions are written once, and who can only write to the database cannot make them.",
    ),
    # --- secrets in definitions (test_sealed_definitions.py in tests/unit and tests/integration)
    "sealed:told-by-name": (
        "goal 34",
        "Which values of env, headers and a URL's query are secrets is told by their names.",
    ),
    "sealed:stands-in": (
        "own decision",
        "With its secrets sealed a definition reads as one, opens whole; its digest tells none.",
    ),
    "sealed:place": (
        "goal 34",
        "A sealed value opens with its own key, under its own name, beside its own command alone.",
    ),
    "sealed:not-registered": (
        "own decision",
        "What looks sealed is refused as a value, so that what looks sealed in the record is.",
    ),
    "sealed:dump": (
        "goal 34",
        "No dump of the record has a secret of a definition, and no copied row gives one away.",
    ),
    "sealed:shown": (
        "goal 34",
        "Nobody who looks at a server is shown a secret, sealed or not; only the export has them.",
    ),
    "sealed:worker": (
        "goal 34",
        "A server is given its secrets in the clear, or its worker says what keeps it from that.",
    ),
    "sealed:same": (
        "design D8",
        "Versions are compared by their secrets in the clear, however often they are sealed.",
    ),
    "sealed:no-key": (
        "own decision",
        "Without an encryption key no definition with secrets is registered, and others are.",
    ),
    "sealed:older": (
        "goal 34",
        "Rewrapping seals what an earlier release stored in the clear, and voids no approval.",
    ),
    # --- the registry as one document (tests/integration/test_document.py)
    "document:round-trip": (
        "own decision",
        "Export, apply to an empty fleet, export again: the same bytes.",
    ),
    "document:plan": (
        "own decision",
        "Applying says what it does, does only that, all or nothing, and nothing the second time.",
    ),
    "document:bad-input": (
        "own decision",
        "A document that is not valid is refused with the path of what is wrong.",
    ),
    # --- the audit (tests/integration/test_governing_api.py, test_audit_chains.py,
    # test_audit_api.py, test_audit_kill.py, tests/unit/test_audit_verification.py)
    "audit:shown": (
        "guide",
        "Operators see who changed what, by tenant, run, call and event.",
    ),
    "audit:tampering-found": (
        "reliability 7",
        "Offline, every edit, deletion, insertion, reordering, cut-off and rewriting is found.",
    ),
    "audit:no-false-alarm": (
        "reliability 7",
        "On an audit that nobody touched the verifier raises no alarm.",
    ),
    "audit:complete": (
        "guide",
        "Transitions of calls and administrative changes have entries that say who, whose and how.",
    ),
    "audit:no-secret": ("guide", "No entry holds the secret of a key."),
    "audit:append-only": (
        "reliability 7",
        "The database refuses to change or remove what the audit holds, also to its owner.",
    ),
    "audit:sealed": (
        "reliability 7",
        (
            "Every committed entry is sealed once into its tenant's chain, in numbers without a "
            "gap, however late it was committed and however many stewards seal."
        ),
    ),
    "audit:kill-9": (
        "reliability 7",
        "Under kill -9 no change of a call is without its entry, and no entry without its change.",
    ),
    "audit:checkpoints": (
        "reliability 7",
        (
            "Checkpoints are signed with a key outside the database, which can be changed, and "
            "are kept in a file outside as well."
        ),
    ),
    "audit:outside": (
        "reliability 7",
        "A cut-off end, and a whole audit written anew, are found by the file outside.",
    ),
    "audit:retention": (
        "own decision",
        "Old entries are removed behind a signed cut, and the rest verifies from there on.",
    ),
    "audit:export": (
        "own decision",
        "An export, whole, of a tenant or since an instant, verifies without the fleet.",
    ),
    "audit:cef": ("own decision", "Entries are exported as CEF, escaped as ArcSight defines it."),
    "audit:auditors": (
        "own decision",
        "Auditors read, verify and export; one who is bound to a tenant has that tenant's alone.",
    ),
    "audit:watched": (
        "own decision",
        "Checkup and metrics tell when entries wait for long to be sealed.",
    ),
    "audit:commands": (
        "design 5",
        "The audit is exported, verified and pruned by commands, without a fleet where it can be.",
    ),
    # --- the console: changes, rollouts, the audit (tests/integration/test_console_governing.py,
    # test_audit_search.py, tests/unit/test_definition_lines.py, tests/browser/test_governing.py)
    "console:changes": (
        "guide",
        "A held change is shown line by line with what callers get meanwhile, and decided there.",
    ),
    "console:revealed": (
        "own decision",
        "What servers and callers wrote is shown escaped, and what it hides is seen as codes.",
    ),
    "console:rollouts": (
        "guide",
        "A canary is shown beside the stable version; buttons promote, roll back, change who sees.",
    ),
    "console:governing-roles": (
        "own decision",
        "Changes and rollouts are the operators' pages, the audit that of auditors as well.",
    ),
    "console:story": (
        "guide",
        (
            "By the keyboard alone an operator sees a breaker open, finds the failing call, closes "
            "it, approves a call, stops a run, and reads in the audit that it was done."
        ),
    ),
    "console:tenants": (
        "own decision",
        "Operators see each tenant's limits, how much of them is used, and what it did today.",
    ),
    "console:audit": (
        "guide",
        "The audit is read page by page by tenant, actor, event, run, call and time, and exported.",
    ),
    "console:audit-bounded": (
        "own decision",
        "A page of the audit looks at so many entries at most, and says how far it looked back.",
    ),
    "console:verification": (
        "guide",
        "The audit is verified by a button that says how far it is and, in words, what is wrong.",
    ),
    # --- the console: runs, calls, approvals (tests/integration/test_console_calls.py,
    # tests/unit/test_call_life.py, test_call_search.py, tests/browser/test_calls.py)
    "console:newest": (
        "own decision",
        "Calls and runs are listed newest first, each once, at a cost that does not grow.",
    ),
    "console:find": (
        "own decision",
        "An id or its beginning, an idempotency key or a trace id leads to what it names.",
    ),
    "console:timeline": (
        "guide",
        "A call's page shows its phases in time, and by which rung it was stopped and how soon.",
    ),
    "console:waterfall": (
        "guide",
        "A trace is shown step by step, each below the one that it is part of, in its time.",
    ),
    "console:call": (
        "own decision",
        "A call's page shows what came of it; arguments only as those who approve it see them.",
    ),
    "console:callers": (
        "own decision",
        "Who acts for a tenant sees that tenant's calls, runs and approvals, and none of others.",
    ),
    "console:stopping": (
        "guide",
        "Buttons stop a call or a run, and the page says what that could still do.",
    ),
    "console:deciding": (
        "guide",
        "A call is approved or denied as it was shown; refusals are told with what waits now.",
    ),
    # --- sessions (tests/contract/test_sessions.py)
    "session:speaks-both-eras": (
        "reliability 0.1",
        "A session speaks 2026-07-28 where the server does, else a revision before it.",
    ),
    "session:calls": (
        "own decision",
        "A call over any transport returns what the tool answered, as the server wrote it.",
    ),
    "session:lists": (
        "own decision",
        "All pages of a server's tools are listed as the server wrote them.",
    ),
    "session:probes": (
        "design 5, health",
        "A session can be asked whether its server still answers.",
    ),
    "session:errors-are-typed": (
        "own decision",
        "A call without a result ends in a stable error code, and says if it was dispatched.",
    ),
    "session:times-out": (
        "reliability P6",
        "No call lasts longer than its timeout, whatever the server does.",
    ),
    "session:cancels": (
        "design 4, Stop; goal 9",
        "A cancelled call is cancelled at the server, and only there.",
    ),
    "session:bounds-results": (
        "goal 25",
        "A result over the size limit is a typed error and does not fill the memory.",
    ),
    "session:closes": (
        "design 4, Stop",
        "Closing a session says which rung of the ladder worked.",
    ),
    "session:survives-noise": (
        "reliability 5.2, goal 24",
        "Noise on stdout or stderr never costs a call its answer.",
    ),
    "session:last-words": (
        "own decision",
        "A server that does not start is quoted: its exit code and the end of its stderr.",
    ),
    "session:bounded-open": (
        "own decision",
        "A server that never answers, or is not there, is given up in time.",
    ),
    "session:dead-is-known": (
        "reliability P8",
        "A session whose server died is known to be dead at once.",
    ),
    "session:child-environment": (
        "reliability 4.2, goal 33",
        "A child's environment is exactly a short allow-list and what it was given.",
    ),
    "session:credentials": (
        "design 4, step 6",
        "A credential enters the session by environment, header or _meta, as defined.",
    ),
    "session:limits": (
        "design 5, sandbox",
        "A server's tree is held to the limits of its sandbox, or it does not start.",
    ),
    "session:http-status": (
        "reliability 5.3, goal 26",
        "An HTTP server's refusals are told apart by status; redirects are not followed.",
    ),
    # --- arguments in headers (tests/unit/test_mirrored.py, tests/integration/test_mirrored.py)
    "headers:mirrored": (
        "MCP 2026-07-28, custom headers",
        "Over HTTP, an argument that its tool wants as a header travels as one too, encoded.",
    ),
    "headers:refused": (
        "MCP 2026-07-28, custom headers",
        "A tool that asks for a header that cannot be is left out of its server's listing, alone.",
    ),
    # --- results of any kind (tests/contract/test_untyped.py)
    "session:untyped-results": (
        "MCP 2026-07-28, result types",
        "A result that does not say of what kind it is, is complete.",
    ),
    # --- the conformance suite (tests/unit/test_conformance.py, `make conformance`)
    "conformance:nothing-lost": (
        "design D9",
        "A check that passes in front of a server and not through the fleet is named.",
    ),
    # --- progress (tests/integration/test_signals.py)
    "progress:paced": (
        "own decision",
        "A short call's reports of progress are all told; of a flood, ten a second.",
    ),
    # --- misbehaving servers (tests/contract/test_faults.py, tests/soak)
    "faults:all-modes": (
        "reliability 5.2",
        "Each known misbehaviour of a server is provoked, and has an expected end.",
    ),
    "faults:typed-in-time": (
        "reliability 5.2, goals 24 and 26",
        "However a server misbehaves, its call ends in an answer or the right code, in time.",
    ),
    "faults:loop-runs-on": (
        "reliability 5.2, goal 24",
        "No misbehaving server holds the event loop for 50 ms.",
    ),
    "faults:neighbours": (
        "reliability 5.2, goal 24",
        "While one server misbehaves, the calls of another one succeed.",
    ),
    "faults:reconnects": (
        "reliability 5.3, goal 26",
        "At most five event streams are opened for one call, and for a session's notifications.",
    ),
    "session:lost-or-refused": (
        "reliability 5.1, goal 26",
        "A session that a server forgot is lost, and its call never ran; a new one is refused.",
    ),
    "session:multiplexes": (
        "design 5, calls_per_session",
        "Calls that share a session are told apart: each has its own status, deadline and end.",
    ),
    "session:misses-its-peer": (
        "own decision",
        "The other end of a connection that is gone without a word is missed within a minute.",
    ),
    "session:resets": (
        "own decision",
        "The operator's reset tool makes a session fit for its next user, or unfit for use.",
    ),
    "session:tells-the-listing-changed": (
        "own decision",
        "A server may say as often as it likes that its tools changed; it is heard each time.",
    ),
    # --- changes of tools (tests/unit/test_watching.py, tests/contract/test_listening.py,
    #     tests/contract/test_faults.py, tests/integration/test_refresh.py,
    #     tests/fleet/test_listening.py)
    "listing:heard": (
        "own decision",
        "A tool that is added while its server runs is known of at once, over every transport.",
    ),
    "listing:one-stream": (
        "own decision",
        "Listening takes nothing from the pool; over HTTP it is one stream per served version.",
    ),
    "listing:renewed": (
        "own decision",
        "Who listens is replaced when it is gone, and what may have been missed is listed.",
    ),
    "listing:answers-news": (
        "own decision",
        "Whatever is heard is answered by a listing that began later, or by the next one.",
    ),
    "listing:paced": (
        "own decision",
        "Tools are listed at most once a second, and more rarely while that changes nothing.",
    ),
    "listing:introductions": (
        "own decision",
        "A server that introduces itself otherwise has its tools listed, by what it is now.",
    ),
    "listing:misheard": (
        "own decision",
        "A server that misbehaves in a subscription loses nothing else: its calls go on.",
    ),
    "listing:bounded": (
        "own decision",
        "A list of tools without an end, of over 2,000, or that is none, is refused, and why.",
    ),
    # --- birth and death of a stdio server (tests/contract/test_spawn.py)
    "stop:whole-tree": (
        "reliability 1.2, goal 14",
        "A session that ends leaves no process behind, however the server's children hide.",
    ),
    "worker:reaps": (
        "reliability 1.2, goal 14",
        "A worker that starts ends what killed workers left behind, and nobody else.",
    ),
    "soak:leaves-nothing": (
        "reliability goals 14, 15",
        "After 10,000 cycles of calls, cancels and kills no process, file, thread or task is left.",
    ),
    "worker:counts-processes": (
        "guide",
        "A worker's figures show its processes, zombies and open files.",
    ),
    "servers:no-loader-variables": (
        "reliability goal 33",
        "A definition cannot set a variable by which programs load code or run commands.",
    ),
    # --- server definitions (tests/unit/test_definitions.py, test_addresses.py)
    "definitions:unknown-fields": (
        "own decision",
        "A field that does not exist is refused by its path, with the one that was meant.",
    ),
    "definitions:command": (
        "own decision",
        "A command is a bare name or a whole path, never a relative path or a command line.",
    ),
    "definitions:url": (
        "own decision",
        "A URL is a whole http or https URL without a user, a password or a fragment.",
    ),
    "definitions:addresses": (
        "own decision",
        "A private address or name, however it is spelled, has to be allowed by the definition.",
    ),
    # --- requests to somewhere else (tests/contract/test_outbound.py, tests/unit/test_ways_out.py)
    "outbound:addresses": (
        "goal 32",
        "What is not public, however it is written or named, is reached only where it is allowed.",
    ),
    "outbound:pinned": (
        "goal 32",
        "A connection goes to the address that was checked; TLS and Host keep the name.",
    ),
    "outbound:encrypted": ("goal 32", "Public addresses are reached over https alone."),
    "outbound:refusal": (
        "own decision",
        "A refusal says what was written and what kind of address it leads to, not which.",
    ),
    "outbound:redirects": (
        "goal 32",
        "Redirects are not followed, or few, checked each, and never with a secret or a body.",
    ),
    "outbound:bounded": (
        "own decision",
        "An answer from elsewhere is bounded in time and size; nothing of it is kept.",
    ),
    "outbound:everywhere": (
        "goal 32",
        "Everything that takes or follows a URL goes out through the guard.",
    ),
    "outbound:no-packets": (
        "goal 32",
        "Of a hundred forbidden targets, by every way there is, none gets a single packet.",
    ),
    "outbound:no-process": (
        "goal 33",
        "No URL, whoever wrote it and whatever it holds, reaches a command line.",
    ),
    # --- what is registered (tests/integration/test_registration_guard.py, test_commands.py)
    "guard:operators-register": (
        "goal 33",
        "Whoever is no operator changes nothing of what is registered.",
    ),
    "guard:nothing-is-started": (
        "goal 33",
        "No hostile registration, by any way and by anybody, starts a process.",
    ),
    "guard:refusal": (
        "own decision",
        "A command that is refused is refused by the argument that is wrong, and says why.",
    ),
    "guard:no-way-around": (
        "goal 33",
        "Shells, launchers, code in arguments and open containers are no commands.",
    ),
    "guard:policy": (
        "own decision",
        "An operator's file says which programs may be started, with which arguments.",
    ),
    "guard:before-each-start": (
        "goal 33",
        "A worker starts nothing that the policy refuses, whatever the record says.",
    ),
    "guard:pinned-program": (
        "goal 33",
        "A program that is not the pinned one any more is not started.",
    ),
    "definitions:values": (
        "own decision",
        "Arguments, variables and headers hold what a process or HTTP can carry, within bounds.",
    ),
    "definitions:numbers": ("own decision", "A number that makes no sense is refused."),
    "definitions:names": (
        "own decision",
        "A name that is not legal is refused with what is.",
    ),
    "definitions:each-problem": (
        "design 5",
        "Each field that is wrong is listed with its path, in an operator's words.",
    ),
    "definitions:no-effects": (
        "own decision",
        "Validating a definition starts, opens and looks up nothing.",
    ),
    # --- import of clients' files (tests/unit/test_importing.py,
    #     tests/integration/test_import_command.py, tests/fleet/test_import.py)
    "import:whole-files": (
        "design 5",
        "A file of `mcpServers` JSON, as desktop clients write it, imports as it is.",
    ),
    "import:shapes": (
        "own decision",
        "Each known client's way to write its servers is understood, comments and all.",
    ),
    "import:bad-files": (
        "own decision",
        "A file that is none is refused with what is expected; one bad server harms no other.",
    ),
    "import:placeholders": (
        "own decision",
        "Placeholders are filled once, from what is given; all that is missing is named.",
    ),
    "import:names": ("own decision", "Names are made legal and unique, and that is said."),
    "import:told": (
        "own decision",
        "What is skipped, refused or ignored is told, each with its reason or path.",
    ),
    "import:timeouts": (
        "own decision",
        "A timeout is read in its client's unit; where that is not clear it is left alone.",
    ),
    "import:command": (
        "own decision",
        "A file's servers are registered by one command, or tried; none keeps another out.",
    ),
    # --- large results (tests/unit/test_large.py, tests/contract/test_large_results.py,
    #     tests/integration/test_artifacts.py, tests/fleet/test_large_results.py)
    "large:never-read-here": (
        "goal 24, goal 25",
        "A large message is never parsed in the worker: a small one stands for it on its way.",
    ),
    "large:no-stall": (
        "goal 24",
        "No callback of the worker's loop takes 50 ms of CPU, however large a result is.",
    ),
    "large:checked-and-redacted": (
        "design 4, step 9",
        "A large result is held to its schema, scrubbed and redacted like any other.",
    ),
    "large:lists-of-tools": (
        "own decision",
        "A large page of tools is checked and scrubbed beside the loop, and arrives as it came.",
    ),
    "large:fails-alone": (
        "own decision",
        "A failure of the process that reads large results costs one job, and is a typed error.",
    ),
    "large:in-time": (
        "own decision",
        "A large result is read within its call's time, and holds up no message on its way.",
    ),
    "large:dies-with-its-worker": (
        "goal 14",
        "The process that reads large results is gone 3 s after its worker was killed.",
    ),
    "large:linked": (
        "goal 25",
        "A call with a large result succeeds with a link to it and how it begins.",
    ),
    "artifacts:stored-first": (
        "own decision",
        "What a succeeded call links to is stored; what no call kept is removed after an hour.",
    ),
    "artifacts:served": (
        "goal 25",
        "An artifact is sent as it was stored, to its tenant and to operators alone.",
    ),
    # --- what a worker process holds (tests/integration/test_worker.py,
    #     tests/unit/test_versions.py)
    "worker:claims-under-its-lease": (
        "design 4, steps 4 and 10",
        "Without a lease nothing is claimed; a call is dispatched under the one that claimed it.",
    ),
    "worker:reaches-every-job": (
        "own decision",
        "A stop and a lost lease reach each job of a call, however often it was delivered.",
    ),
    "worker:stops-in-time": (
        "design D4",
        "A stop that only the record knows of is acted upon while another version starts.",
    ),
    "worker:makes-a-version-once": (
        "own decision",
        "A server version is made once for all calls that wait for it, and again if that failed.",
    ),
    "worker:drains-all-versions": (
        "own decision",
        "A draining worker lends no session, of a version first asked for then neither.",
    ),
    "worker:lets-old-versions-go": (
        "own decision",
        "A worker keeps nothing of a version that nobody uses; a run that needs it has it anew.",
    ),
    "worker:closes-in-time": (
        "own decision",
        "A worker closes its versions side by side, and gives up its lease whatever they do.",
    ),
    # --- the front door (tests/unit/test_addressed.py, test_scopes.py,
    #     tests/integration/test_front_door.py, test_bounds.py, test_tokens.py, test_contract.py)
    "door:roles": (
        "guide, checklist",
        "Each route is for the roles that one table names; a route outside of it does not pass.",
    ),
    "door:tenants-cannot-tell": (
        "guide, checklist",
        "Another tenant's id is answered as an id that nobody has, on every route.",
    ),
    "door:hosts": (
        "guide, checklist",
        "A request for a host that the API does not answer to is refused (DNS rebinding).",
    ),
    "door:origins": (
        "guide, checklist",
        "A web page of an origin that may not ask is refused, whatever host it names.",
    ),
    "door:health-by-address": (
        "own decision",
        "Health, which says nothing secret, answers to any host; nothing else does.",
    ),
    "door:binding": (
        "guide, checklist",
        "The API is on loopback unless the names that lead to it are given.",
    ),
    "door:bounds": (
        "own decision",
        "Bodies, heads, depth and time of a request are bounded; beyond them stands a typed error.",
    ),
    "door:busy": (
        "own decision",
        "One process works on so many requests at once; the next one is told to come back.",
    ),
    "door:attempts": (
        "own decision",
        "Credentials that fail are limited per address; who was let in lately is not kept out.",
    ),
    "door:refusals-audited": (
        "own decision",
        "Refused attempts are in the audit, counted, and never with what was sent.",
    ),
    # --- signing in to the console (tests/integration/test_console_sign_in.py, tests/browser)
    "console:sign-in": (
        "guide, checklist",
        "A key or token begins a session of bounded length; guesses are limited and audited.",
    ),
    "console:sign-out": (
        "guide, checklist",
        "A session that was ended, or whose key was, is good for nothing on any process.",
    ),
    "console:apart": (
        "guide, checklist",
        "What a browser keeps opens the console's pages and nothing else, neither /v1 nor /mcp.",
    ),
    "console:forms": (
        "guide, checklist",
        "With a session a form is heard only with what the pages of that session carry.",
    ),
    "console:pages": (
        "guide, checklist",
        "Every answer is under the policy of the console, escaped, kept by no cache, in no frame.",
    ),
    "console:accessible": (
        "guide, checklist",
        "Pages pass axe at both widths and in both themes, and the keyboard is enough for them.",
    ),
    "console:roles": (
        "guide, checklist",
        "The navigation shows what a key may see within its role and scopes, and that alone opens.",
    ),
    "keys:scopes": (
        "guide, checklist",
        "A key is narrowed to verbs, servers and tools within its role, and makes no wider one.",
    ),
    "keys:rotation": (
        "guide, checklist",
        "A key is replaced by one that may do the same, and works on until the overlap is over.",
    ),
    "keys:last-use": (
        "own decision",
        "A key shows when it was last used, to the minute; a change of keys is in the audit.",
    ),
    "tokens:taken": (
        "guide, checklist",
        "A token of the identity provider asks as a key does, under its issuer and subject.",
    ),
    "tokens:claims": (
        "own decision",
        "Settings say which claims are role, tenant and scopes; what they leave open is refused.",
    ),
    "tokens:hostile": (
        "guide, checklist",
        "A token of another issuer, audience, algorithm, key, time or kind is refused.",
    ),
    "tokens:keys": (
        "own decision",
        "The provider's keys are kept, asked for again seldom, and held for an hour without it.",
    ),
    "tokens:settings": (
        "own decision",
        "Settings of the identity provider that do not fit are refused at the start.",
    ),
    "contract:kept": (
        "guide, checklist",
        "No request makes the API answer outside of its OpenAPI document, or with a 500.",
    ),
    "contract:whole": (
        "own decision",
        "The document names every route's roles, verb, answers and problems.",
    ),
    # --- the HTTP API (tests/integration/test_api.py)
    "api:no-route-without-key": (
        "own decision",
        "No route but health answers without an API key.",
    ),
    "api:key-expired": ("own decision", "An expired key is refused as key_expired."),
    "api:keys": (
        "design 5",
        "A key is shown once, works at once, and is refused once it is revoked.",
    ),
    "api:operators-only": (
        "own decision",
        "Only operators change servers and keys, and read the metrics.",
    ),
    "api:tenants-are-apart": (
        "reliability, goal on tenants",
        "A tenant's key reaches that tenant's runs and calls alone; others do not exist for it.",
    ),
    "api:servers": (
        "design 5",
        "A server is added, versioned, refreshed and removed over HTTP; mistakes are named.",
    ),
    "api:runs": ("design D8", "A run shows the tools of its snapshot as a model sees them."),
    "api:wait": (
        "design 4, step 11",
        "A waiting caller gets the call as the record has it, at its end or when time is over.",
    ),
    "api:submit-errors": (
        "own decision",
        "A call that cannot be taken is refused with a typed error and what to do.",
    ),
    "api:idempotency": (
        "design 4, step 2",
        "One idempotency key is one call; another payload under it is refused.",
    ),
    "api:message-is-a-hint": (
        "design D1",
        "The message about a call carries its id and trace context, and no arguments.",
    ),
    "api:cancel": (
        "design 4, Stop",
        "A stop is answered with what it could still do, and the record says the same.",
    ),
    "api:events": (
        "design 5",
        "A call can be followed to its end; a listener that leaves changes nothing.",
    ),
    "api:problems": (
        "design 4",
        "Whatever is wrong with a request is told as a problem document with a stable code.",
    ),
    "api:broker-away": (
        "own decision",
        "While Redis is away calls are taken, awaited and stopped all the same.",
    ),
    "api:store-away": (
        "own decision",
        "While Postgres is away the API runs, says that it is not ready, and refuses with 503.",
    ),
    "api:strong-key": (
        "own decision",
        "An API whose signing key is missing or could be guessed does not start.",
    ),
    "api:stops": (
        "own decision",
        "A stopping API process answers whoever waits, and ends, whatever is away.",
    ),
    "api:metrics": (
        "own decision",
        "The metrics show requests, queues, calls, workers, and each worker's own figures.",
    ),
    # --- metrics, alerts, dashboards (tests/unit/test_figures.py, test_alert_rules.py,
    #     test_server_time.py, tests/integration/test_metrics.py, tests/fleet/test_alerts.py)
    "metrics:bounded": (
        "guide",
        "However many tenants, runs and calls there are, the metrics have the same series.",
    ),
    "metrics:dead-workers": (
        "own decision",
        "What a dead worker held is not shown; what it counted is, until it is forgotten.",
    ),
    "metrics:borrow-in-vain": (
        "guide",
        "Borrow wait counts the waits that were in vain too: they are the longest.",
    ),
    "metrics:end-to-end": (
        "guide",
        (
            "Each call counts once, by server and tier, with what became of it and how long it "
            "took from its submission, whichever process ended it."
        ),
    ),
    "metrics:server-time": (
        "guide",
        "Server-side time is told apart from the round trip, where a server reports it credibly.",
    ),
    "metrics:stops": (
        "guide",
        "How long a stopped call's work took to stop is told, by what made it stop.",
    ),
    "metrics:any-api": (
        "own decision",
        "Whichever API process is asked tells what each of them counts.",
    ),
    "metrics:record": (
        "guide",
        (
            "The metrics tell of each server its queue's age and depth, active runs, approvals "
            "that wait, credentials, canary, listing, version and cost tag."
        ),
    ),
    "metrics:otlp": (
        "own decision",
        "With OTEL_* set, one steward sends the same numbers by OTLP, and else nobody does.",
    ),
    "metrics:listed": ("own decision", "A page lists every metric with its labels."),
    "metrics:cost-tag": ("guide", "Cost is tagged by server: a definition names who pays."),
    "alerts:runbook": (
        "own decision",
        "Every alert names its server, and says what it means, where to look and what to do.",
    ),
    "alerts:tested": (
        "own decision",
        "Every rule has a case in which it fires and one in which it does not.",
    ),
    "alerts:real-metrics": (
        "own decision",
        "Rules and dashboards use metrics and labels that the product exposes.",
    ),
    "alerts:real-fleet": (
        "guide",
        (
            "An undersized pool, a failing server, a changed schema, zombies, an approval that "
            "waits and a queue without workers raise their alerts in a real fleet."
        ),
    ),
    "dashboards:load": ("own decision", "The dashboards load in Grafana without edits."),
    "api:documented": ("design 5", "The OpenAPI document shows every route and its body."),
    # --- hints through Redis (tests/integration/test_hearing.py)
    "hearing:one-connection": (
        "own decision",
        (
            "A process hears any number of channels on one connection, each from the moment it is "
            "asked for, and again after the connection was lost."
        ),
    ),
    # --- calls of MCP clients (tests/integration/test_calling.py, test_mcp_tasks.py,
    #     tests/unit/test_mcp_results.py, tests/fleet/test_mcp_tasks.py)
    "mcp:results-as-recorded": (
        "the protocol, server/tools",
        "A call is answered with its tool's result as the record has it, in every revision.",
    ),
    "mcp:errors": (
        "the protocol, server/tools",
        (
            "An error of the fleet is a JSON-RPC error with our code; what a model can put right "
            "is a result with isError, from the revision on that wants it so."
        ),
    ),
    "mcp:told-meanwhile": (
        "the protocol, utilities/progress and logging",
        "Progress that only grows, and log messages from the level asked for, come before the end.",
    ),
    "mcp:questions": (
        "the protocol, client/elicitation and basic/patterns/mrtr",
        (
            "What a server asks reaches the client once, by a request or an answer that asks for "
            "input; the same call goes on with what is answered."
        ),
    ),
    "mcp:request-state": (
        "the protocol, basic/patterns/mrtr",
        "A request state that was changed, has expired, or is another's is refused.",
    ),
    "mcp:one-call": (
        "own decision",
        "A request with an idempotency key that is known is answered by the call that there is.",
    ),
    "mcp:leaving": (
        "the protocol, basic/transports",
        "Who closes the stream of a 2026-07-28 request stops its call; in a session it goes on.",
    ),
    "mcp:bounded-wait": (
        "own decision",
        (
            "A client that knows no tasks is told in time that its call goes on, and two tools "
            "lead to the result."
        ),
    ),
    "mcp:own-tools-collide-with-none": (
        "own decision",
        "No tool of a run loses its name to one of the fleet's own.",
    ),
    "mcp:tasks": (
        "the Tasks extension",
        "A slow call, or one that waits for approval, becomes a task for clients that declare it.",
    ),
    "mcp:task-rule": (
        "own decision",
        "An operator says of a tool whether its calls are tasks always, never, or of necessity.",
    ),
    "mcp:tasks-are-rows": (
        "the Tasks extension",
        "Any process answers for a task, to its tenant alone, as the record has it.",
    ),
    "mcp:task-changes": (
        "the Tasks extension",
        "A subscriber is told of each change of its tasks, to the end.",
    ),
    "mcp:tasks-survive": (
        "own decision",
        "kill -9 of API and worker in mid-task: another process hands out the result.",
    ),
    # --- the ledger (tests/integration/test_calls.py, test_steward_leases.py)
    "calls:row-first": (
        "design D1",
        "A call is a row, with its audit line, before it is a message.",
    ),
    "calls:idempotent-submit": (
        "design 4, step 2",
        "One idempotency key of a tenant is one call, however often and at once it is submitted.",
    ),
    "calls:open-runs-only": ("own decision", "Only an open run takes calls."),
    "calls:no-deadlock": (
        "own decision",
        "Whoever changes many calls at once waits for nobody who waits for it, or tries again.",
    ),
    "calls:claimed-once": ("design 4, step 4", "A call is claimed by one worker at a time."),
    "calls:depth-costs-nothing": (
        "own decision",
        "What a claim reads does not depend on how many calls are queued.",
    ),
    "calls:never-claimed": (
        "design 4, Stop",
        "A stopped call, one past its deadline or of a cancelled run is never claimed.",
    ),
    "calls:fenced": (
        "design 4, step 10",
        "Only the attempt that holds the call ends it; a zombie worker changes nothing.",
    ),
    "calls:legal-transitions": (
        "style, habit 2",
        "A call's state changes only along its table of transitions, in any history.",
    ),
    "calls:audited": ("design 4, step 10", "Every change of a call's state has its audit line."),
    "calls:result-as-it-came": (
        "own decision",
        "Any JSON that a tool returns is read from the record as it was written.",
    ),
    "calls:bounded-arguments": (
        "own decision",
        "Arguments and deadlines outside the limits are refused before they cost anything.",
    ),
    "stop:honest-answer": (
        "design 4, Stop",
        "A stop says what it could still do, and the record agrees, whoever won the race.",
    ),
    "stop:queued-never-runs": (
        "own decision",
        "A queued call that is stopped never runs, also when all workers were down at the time.",
    ),
    "leases:by-delivery-class": (
        "design D5",
        "A dead worker's calls run again if their class allows it, else end outcome_unknown.",
    ),
    "leases:dead-only": ("design D2", "Only the calls of workers without a lease are closed."),
    "leases:renewed": ("design D2", "A worker lives as long as it renews its lease in time."),
    "steward:expires": (
        "own decision",
        "Queued calls end when their deadline passes, their run is cancelled or they are stopped.",
    ),
    "steward:resends": (
        "own decision",
        "Committed calls that nobody claimed in time are sent again.",
    ),
    "steward:many": ("own decision", "Several stewards at once do each thing once."),
    # --- questions of servers to callers (tests/integration/test_questions.py,
    #     test_asked_calls.py, tests/unit/test_answers.py, tests/contract/test_back_channel.py)
    "questions:durable": (
        "design D9",
        "A question, and its answer, are rows: any process may ask, answer and take.",
    ),
    "questions:answered-once": (
        "design D9",
        "Each question has a key of its own for ever, and the first answer counts.",
    ),
    "questions:only-what-is-answered": (
        "design D9",
        "A caller is asked only what it said that it answers; all else is refused at once.",
    ),
    "questions:under-the-claim": (
        "design D9",
        "Only the claim that holds asks and takes back; a call that ends withdraws what is open.",
    ),
    "questions:asked-once": (
        "design D9",
        "A call that runs again and asks the same is given the answer that there is.",
    ),
    "questions:forgotten": (
        "design D9",
        "What was asked and answered is erased when the call has ended; the audit knows digests.",
    ),
    "questions:of-its-tenant": (
        "design D9",
        "Another tenant neither sees nor answers the questions of a call.",
    ),
    "questions:checked": (
        "design D9",
        "An answer has the shape of its method's result, and a form's fits the form.",
    ),
    "questions:bounded": (
        "design D9",
        "How often a call asks, and how much, is bounded.",
    ),
    "questions:reach-the-caller": (
        "design D9",
        "Elicitation, sampling and roots of a server reach the caller, and its answer the server.",
    ),
    "questions:let-out": (
        "own decision",
        "What is asked is redacted, but for what an answer has to agree with.",
    ),
    "questions:a-write-stays-one": (
        "design D5",
        "A write that waits for an answer may run again only while nothing of it runs.",
    ),
    "questions:an-operators-word": (
        "own decision",
        "A server's definition says what it may ask; those from before it could are unchanged.",
    ),
    "questions:kill-9": (
        "design D9",
        "A worker killed while a question is open: the answer still counts, or the end is unknown.",
    ),
    "questions:their-own-call": (
        "own decision",
        "A question is put to the caller of the call that it belongs to, or to nobody.",
    ),
    "questions:time-stands-still": (
        "own decision",
        "The time that an answer takes is not the server's: the call's deadline bounds it.",
    ),
    "logs:on-demand": (
        "design D9",
        "A caller who asked for log messages is told them, redacted, in order with progress.",
    ),
    "trace:reaches-the-server": (
        "design D9",
        "The trace that a call belongs to goes on in the request that its server gets.",
    ),
    # --- traces and logs (tests/unit/test_telemetry.py, tests/integration/test_traces.py,
    #     tests/fleet/test_traces.py)
    "traces:connected": (
        "guide",
        "A call is one connected trace, from the request that brought it to the commit of its end.",
    ),
    "traces:sampled-once": (
        "guide",
        "Whether a trace is recorded is decided where it begins, by the caller's flag or a share.",
    ),
    "traces:failures-kept": (
        "own decision",
        "What fails, or is slow, is kept though its trace is not recorded, and says its code.",
    ),
    "traces:cheap": (
        "guide",
        "So many traces a second are recorded at most, each with so many steps.",
    ),
    "traces:harmless": (
        "own decision",
        "What cannot be kept or exported is lost and counted; no call fails or waits for it.",
    ),
    "traces:kept": (
        "guide",
        "The newest traces are kept without a collector: so many of them, for so long, so large.",
    ),
    "traces:exported": (
        "guide",
        "Spans reach a collector over OTLP, as the OTEL_* variables have it.",
    ),
    "traces:nothing-personal": (
        "guide",
        "No span has arguments or results in it, nor who called, nor an address.",
    ),
    "logs:carry-ids": (
        "guide",
        "A line of a log that is about a call names its trace, the call and its run.",
    ),
    # --- the MCP endpoint (tests/unit/test_mcp_messages.py, tests/integration/test_mcp_sessions.py,
    #     test_mcp_stateless.py, test_mcp_streams.py)
    "mcp:revisions": (
        "design D9",
        "Clients of all four revisions are served at one address, each by its own rules.",
    ),
    "mcp:messages": (
        "design D9",
        "What is no message of the protocol is refused with its code, under its id if it has one.",
    ),
    "mcp:headers": (
        "design D9",
        "Headers that repeat what a body says have to say the same, by the newest revision.",
    ),
    "mcp:sessions": (
        "design D9",
        "A session is its key's alone, lives with its run, and ends with DELETE: then it is 404.",
    ),
    "mcp:any-replica": (
        "design D9",
        "Any API process serves any session, knows its requests' calls, and goes on with streams.",
    ),
    "mcp:run": (
        "design D9",
        "A session or a header is a run with pinned tools; else the caller's run is a current one.",
    ),
    "mcp:lists": (
        "design D9",
        "Tools are listed as the run has them, in pages, unprefixed where one server is meant.",
    ),
    "mcp:streams": (
        "design D9",
        "An answer is JSON unless something is told before it, and of a kind its client takes.",
    ),
    "mcp:resume": (
        "design D9",
        "A client that lost the stream of an answer comes back for it, in whatever process.",
    ),
    "mcp:cancel": (
        "design D9",
        "A cancelled request's call stops; a closed stream stops one by the newest revision alone.",
    ),
    "mcp:subscriptions": (
        "design D9",
        "Who listens is told of changes of the tools, after what it is told of was acknowledged.",
    ),
    "mcp:log-level": (
        "design D9",
        "A client says from which level on it wants log messages, for its session or its request.",
    ),
    "mcp:door": (
        "own decision",
        "MCP clients come through the same door as others: keys, roles, scopes, hosts and bounds.",
    ),
    # --- MCP clients that others wrote (tests/fleet/test_clients.py), and the fleet over stdio
    #     (tests/integration/test_stdio.py)
    "mcp:real-clients": (
        "design D9",
        "Clients that others wrote work with a whole fleet, in both eras, over HTTP and stdio.",
    ),
    "stdio:passes-on": (
        "design D9",
        "Over stdio a client has what it has over HTTP, in both eras, a message a line.",
    ),
    "stdio:cancel": (
        "2026-07-28, stdio",
        "What a client over stdio cancels is stopped, and has no answer.",
    ),
    "stdio:headers": (
        "2026-07-28, streamable HTTP",
        "Headers repeat what they have to, for clients that know of no headers.",
    ),
    "stdio:sessions": (
        "own decision",
        "Neither a lost connection nor a session that is gone is seen by a client over stdio.",
    ),
    "stdio:errors": (
        "own decision",
        "What keeps a request from the fleet is its error, with what to do about it.",
    ),
    "stdio:leaves-nothing": (
        "own decision",
        "When a client over stdio is gone, so are its calls, its session and the process.",
    ),
    # --- runs, servers, listings, tables (tests/integration/test_runs.py, test_ingest.py,
    #     test_migrations.py)
    "runs:pinned": ("design D8", "A run sees the tools of its start, whatever changes later."),
    "runs:content-addressed": ("design D8", "Equal tools are one snapshot."),
    "runs:who-may-use": ("design 5", "A run has the tools that its tenant may use, and no other."),
    "runs:unknown-tool": (
        "own decision",
        "A tool that a run does not have is refused, the nearest ones named.",
    ),
    "runs:ended-once": ("design 5", "A run ends once, and only its own tenant ends it."),
    "runs:token": ("design D8", "A run token stands for its run until it expires, unforgeable."),
    "tools:collisions": (
        "own decision",
        "Tools that would have one name are refused with a clear error.",
    ),
    "ingest:changes": ("own decision", "A listing that changed is recorded with what changed."),
    "ingest:immutable": ("own decision", "Tool versions never change, and equal ones are one."),
    "ingest:scheduled": ("own decision", "Tools not listed for a while are listed again."),
    "catalog:unique": ("own decision", "Server names and tool prefixes are unique."),
    "catalog:versions": ("own decision", "A server version never changes; one is current."),
    "catalog:tried": (
        "own decision",
        "A registration can be tried: what would refuse it does, and nothing stays.",
    ),
    "catalog:older-rows": (
        "style, habit 17",
        "A definition that an older release took is read, whatever new ones are held to.",
    ),
    "catalog:hides-values": ("reliability 4.2", "Values of environment and headers are not shown."),
    "migrations:models-equal-schema": (
        "style, migrations",
        "The migrated schema is what the models say.",
    ),
    "migrations:old-code-runs": (
        "style, habit 17",
        "The code of the revision before runs on today's `pre` schema.",
    ),
    "migrations:up-and-down": (
        "own decision",
        "The newest migrations can be undone and done again.",
    ),
    "migrations:names": (
        "design 2",
        "A migration's name has its number, and whether it comes before or after its code.",
    ),
    "migrations:repeatable": ("own decision", "Migrating a migrated database changes nothing."),
    "submit:replied-once": ("own decision", "A raw Celery client gets its call's end, once."),
    "submit:replied-to-all": (
        "own decision",
        "Each task that asked for a known call gets its end, although Redis was away.",
    ),
    # --- dynamic tool selection (tests/integration/test_selection.py)
    "search:recall": (
        "guide",
        "Of the tools that answer a real intent, most are among the first ten found.",
    ),
    "search:words": (
        "own decision",
        "A tool is found by the words of its name, its description and its parameters.",
    ),
    "search:synonyms": (
        "own decision",
        "A tool is found by words that mean the same as its own.",
    ),
    "search:rare-words": (
        "own decision",
        "A word that few tools have counts more than one that many have.",
    ),
    "search:any-intent": (
        "own decision",
        "Any text is an intent; one of which no word is known gives the first tools by name.",
    ),
    "search:only-given-tools": (
        "guide",
        "A search finds tools of its run alone: no hidden tool, and none of another server.",
    ),
    "search:deterministic": (
        "own decision",
        "Equal tools and an equal intent give an equal answer.",
    ),
    "search:any-tool": (
        "own decision",
        "Nothing that a server lists keeps it from being recorded; tools of before are found too.",
    ),
    # --- registry values (tests/unit/test_tools.py, test_schemas.py, test_redaction.py,
    #     test_outcome.py, test_database.py, test_errors.py)
    "tools:names": (
        "own decision",
        "A tool's model-facing name is prefixed, legal everywhere, stable and its own.",
    ),
    "tools:digests": ("own decision", "Equal tools have equal digests, different ones do not."),
    "tools:delivery": (
        "design D5",
        "The operator, not the server alone, decides a delivery class.",
    ),
    "tools:rules": ("design 5", "A tool's rule sets its timeout and can hide it."),
    "schemas:arguments": (
        "own decision",
        "Arguments that do not fit are refused with the JSON path of each problem.",
    ),
    "schemas:hostile": ("reliability 4", "A server's schema neither stalls us nor makes us fetch."),
    "schemas:results": (
        "design 4, step 9",
        "A result is held to the output schema its tool declares.",
    ),
    "redaction:finds": (
        "reliability 36",
        "Cards, telephone numbers, e-mail and IP addresses, IBANs and SSNs are replaced.",
    ),
    "redaction:secrets": (
        "design 4, step 9",
        "Tokens of well-known make, and what is given as a secret, are replaced.",
    ),
    "redaction:recall": (
        "reliability 36",
        "Of labelled sentences 95 % is masked, and 97 % of what is masked is labelled.",
    ),
    "redaction:spares": ("design 4, step 9", "What only looks like personal data stays as it is."),
    "redaction:everywhere": (
        "design 4, step 9",
        "Every string and number of a result is read, names of members too.",
    ),
    "redaction:written-otherwise": (
        "reliability 7",
        "Digits of other scripts, other widths and hidden characters hide nothing.",
    ),
    "redaction:named": ("own decision", "What a member is called tells what its value is."),
    "redaction:embedded": (
        "reliability 7",
        "JSON within a text, and text written as base64, are read; bytes are left alone.",
    ),
    "redaction:split": (
        "reliability 7",
        "What is split over texts that follow each other is found.",
    ),
    "redaction:refuses": ("design 4, step 9", "A redactor that fails refuses the result."),
    # --- what leaves of a result (tests/unit/test_results.py, test_output_rules.py,
    #     test_guardrails.py, tests/integration/test_output_gate.py)
    "results:masks-fit": (
        "reliability 36",
        "Structured content that fitted its schema fits it redacted, or the result is refused.",
    ),
    "results:in-order": (
        "design 4, step 9",
        "The raw result is checked, then searched, then redacted; errors and progress are too.",
    ),
    "results:instructions": (
        "reliability 4.2",
        "Instructions to a model in a result are flagged, and block it if the policy says so.",
    ),
    "results:control": (
        "reliability 4.2",
        "Characters that act on terminals or that nobody sees are taken out, flagged or block.",
    ),
    "results:findings-are-ours": (
        "own decision",
        "What was found in a result is said where no server can say it, and repeats nothing.",
    ),
    "rules:of-tenants": (
        "own decision",
        "A tenant's results go by its own rules, else by its tier's; patterns add up.",
    ),
    "rules:linear-patterns": (
        "reliability 4.2",
        "A pattern that could take more than linear time is refused, as is one without bounds.",
    ),
    "guardrails:see-calls": (
        "own decision",
        "A user's check sees each call before and its result after, and may refuse or change it.",
    ),
    "guardrails:fail-closed": (
        "own decision",
        "A check that fails, takes too long or answers nonsense withholds what it was to check.",
    ),
    "gate:in-workers": (
        "design 4, step 9",
        "Whatever a server says leaves a worker by the tenant's rules: results, errors, progress.",
    ),
    "outcome:write-once": ("design D5", "A write is dispatched at most once."),
    "outcome:rerun": ("design D5", "Only what the delivery class allows runs again."),
    "outcome:total": ("design 4, step 8", "Every error has its place in the one table."),
    "outcome:breaker": ("design D7", "Only what the server did moves its breaker."),
    "outcome:sessions": ("reliability P11", "A session that may be spoiled is not used again."),
    "database:group-commit": (
        "design 4",
        "Writes that arrive together are one statement; each caller gets its own outcome.",
    ),
    "database:json": ("own decision", "What is not JSON is never written as JSON."),
    "errors:stable": ("design 4", "Error codes are stable strings with a status and a retry rule."),
    "errors:storable": (
        "own decision",
        "Whatever a server says in an error can be stored: nothing is lost over a NUL.",
    ),
    "settings:durations": ("design 5", "A duration is given in seconds or as ISO 8601."),
    # --- changes of tools (tests/unit/test_diff.py)
    "diff:arguments": (
        "own decision",
        "A tool that takes less than it took breaks its callers; one that takes more does not.",
    ),
    "diff:results": (
        "own decision",
        "A tool that promises less of its results breaks its callers; one that promises more not.",
    ),
    "diff:rewrites": (
        "own decision",
        "The same schema, written otherwise, is a change of the description alone.",
    ),
    "diff:descriptions": (
        "own decision",
        "Other titles, descriptions and examples are told apart from what callers rely on.",
    ),
    "diff:annotations": (
        "own decision",
        "A hint that flips is told, and a tool that is less harmless is a matter of security.",
    ),
    "diff:listings": (
        "own decision",
        "A listing's changes say of each tool what changed and where, short, the gravest first.",
    ),
    "diff:bounded": (
        "reliability 4",
        "Any two schemas are compared in bounded time; what cannot be compared counts as breaking.",
    ),
    "diff:sound": (
        "own decision",
        "Where nothing breaks, every call that was valid still is, and every result was before.",
    ),
    # --- tools before they are taken in (tests/unit/test_screening.py)
    "screening:unusable": (
        "reliability 4",
        "A tool with an illegal name or a schema that nothing can be checked against is refused.",
    ),
    "screening:hidden-text": (
        "reliability 4",
        "Characters that a person does not see are found wherever a model would read them.",
    ),
    "screening:instructions": (
        "reliability 4",
        "Known ways to turn a model against its user are found, however they are spelled.",
    ),
    "screening:spares": (
        "reliability 4",
        "Descriptions as people write them, in any script, are not suspected.",
    ),
    "screening:bounded": (
        "reliability 4",
        "Whatever a server lists is screened in bounded work, in time with its length.",
    ),
    # --- fair turns in a queue (tests/contract/test_fair_queue.py, tests/fleet/test_fairness.py)
    "fair:shares": (
        "peers 3",
        "Tenants that wait in one queue are served alike, however many calls each has submitted.",
    ),
    "fair:weights": (
        "peers 3; reliability P5",
        "Each step of priority doubles a tenant's share; the lowest is served too.",
    ),
    "fair:in-order": (
        "reliability P5",
        "The calls of one tenant are taken in the order in which they were sent.",
    ),
    "fair:nothing-lost": (
        "design D1",
        "Whatever is lost between list and turns, every waiting message is delivered, once.",
    ),
    "fair:keeps-nothing": (
        "own decision",
        "Tenants without waiting calls leave nothing in Redis.",
    ),
    "fair:cheap": (
        "design 7",
        "A call that finds its queue empty makes no trip that a plain list would not.",
    ),
    "fair:as-celery-knows-it": (
        "design D9",
        "A queue's length is its waiting calls; raw messages are delivered; a purge is one.",
    ),
    "fair:spreads": (
        "own decision",
        "Calls that come together wake every idle worker: the first takes but one.",
    ),
    "fair:gives-back": (
        "design D3",
        "What a worker took and did not start is the first to be taken again.",
    ),
    "calls:priority": (
        "own decision",
        "A call keeps its priority, from 0 to 9, through every run of it.",
    ),
    # --- the asyncio pool (tests/integration/test_aio_pool.py)
    "pool:revoke-one": ("design D4", "A revoke with terminate cancels exactly one coroutine."),
    "pool:time-limit": ("design D3", "Celery's time limits cancel the coroutine they are about."),
    "pool:failure": ("design D3", "A coroutine's exception is its task's failure."),
    "pool:concurrency": (
        "design D3",
        "No more coroutines run than the pool has slots, and `inspect` tells which.",
    ),
    "pool:drain": ("design D3", "A warm shutdown ends every coroutine and then the process."),
    "pool:cold-shutdown": (
        "design D3",
        "A cold shutdown cancels what runs and leaves its message to the next worker.",
    ),
    "pool:queued-revoke": ("design D4", "A revoked task that waits in the queue never starts."),
    # --- credentials (tests/unit/test_credentials.py, tests/fleet/test_credentials.py)
    "credentials:own": (
        "design D6",
        "A tenant's calls are made with that tenant's own credential for that server.",
    ),
    "credentials:scope": (
        "reliability P1, goal 30",
        "However many tenants share a server, no call ever uses another tenant's session.",
    ),
    "credentials:shared": (
        "design D6",
        "Tenants without a credential of their own share the one that stands for all.",
    ),
    "credentials:missing": (
        "design 4, step 6",
        "Where a required credential is missing or useless, the error names server and tenant.",
    ),
    "credentials:listing": (
        "own decision",
        "Tools are listed with the shared credential; with a tenant's only where there is none.",
    ),
    "credentials:rotation": (
        "reliability P1",
        "A changed credential serves the next call; exactly the sessions with the old one go.",
    ),
    "credentials:private-file": (
        "own decision",
        "A credentials file that others may read is refused with what to do.",
    ),
    "credentials:last-good": (
        "reliability 5.1",
        "A file that is bad, half-written or gone takes no good credential away.",
    ),
    "credentials:secret": (
        "design 4, step 6; goal 34",
        "No credential is in a row, message, log, command line, error or result.",
    ),
    "credentials:scrubbed": (
        "goal 34",
        "A secret that a server repeats is replaced in results, errors, progress and logs.",
    ),
    # --- stored credentials and their broker (tests/unit/test_envelope.py, test_oauth.py,
    # test_credential_kinds.py; tests/integration/test_broker.py and those beside it)
    "broker:once": (
        "goal 23",
        "However many workers meet an expired token, one of them renews it, once; all get it.",
    ),
    "broker:never-lost": (
        "goal 23; reliability 7",
        "No failure but `invalid_grant` changes a credential, and that one keeps it, too.",
    ),
    "broker:stored-first": (
        "reliability 7",
        "A rotated refresh token is in the record before anybody uses what came with it.",
    ),
    "broker:ahead": (
        "own decision",
        "Tokens are renewed at 80 % of their life, give or take, while the old ones serve.",
    ),
    "broker:dead-renewer": (
        "goal 23",
        "A process killed while it renews holds nobody up for longer than its lease.",
    ),
    "broker:states": (
        "own decision",
        "A credential's state changes only along its table, each change with its audit entry.",
    ),
    "broker:rejected": (
        "reliability 7",
        "A token that its server rejects is renewed once, and the call made again once.",
    ),
    "broker:issuer": (
        "reliability 4.2, credentials to the wrong AS",
        "What one authorization server gave or takes is never sent to another's endpoint.",
    ),
    "broker:passthrough": (
        "reliability 4.2, token passthrough",
        "What a caller authenticates with never reaches a server.",
    ),
    "broker:kinds": (
        "own decision",
        "Secrets may be static, of files, variables or a Vault, or be got by OAuth 2.1.",
    ),
    "broker:order": (
        "own decision",
        "A tenant's own credential comes before the shared one, a filed one before a stored one.",
    ),
    "broker:own": (
        "goal 30",
        "No tenant is ever given another tenant's secret.",
    ),
    "broker:sealed": (
        "goal 34",
        "What is stored opens with its key, in its own row and version, whole or not at all.",
    ),
    "broker:dump": (
        "goal 34",
        "A dump of the database without the encryption keys holds no secret.",
    ),
    "broker:key-rotation": (
        "goal 34",
        "Encryption keys are changed while every process goes on reading; no secret is touched.",
    ),
    "broker:private-keys": (
        "own decision",
        "Encryption keys that others may read, or that are none, are refused with what to do.",
    ),
    "broker:secret": (
        "goal 34",
        "No answer, audit entry, log or error of the broker has a secret.",
    ),
    "broker:typed-errors": (
        "own decision",
        "What is wrong with a credential is named by its path, and nothing of it is quoted.",
    ),
    "broker:operators": (
        "own decision",
        "Credentials are set, shown and removed by operators alone.",
    ),
    "broker:vault": (
        "own decision",
        "Secrets and encryption keys may be kept by a Vault; its login and leases are respected.",
    ),
    "broker:command": (
        "design 5",
        "Credentials are governed by commands; a secret is never on a command line.",
    ),
    # --- consents: servers that want the MCP authorization flow (tests/unit and
    # tests/integration/test_consent.py; tests/conformance/client_auth.py)
    "consent:command": (
        "own decision",
        "A person consents by one command; the fleet keeps and renews what comes of it.",
    ),
    "consent:discovery": (
        "MCP 2026-07-28, authorization server discovery",
        "Where to consent is found out from the server's refusal, else where standards put it.",
    ),
    "consent:resource": (
        "MCP 2026-07-28, resource parameter; RFC 8707",
        "A token is asked for one server by name, and never for one that another stands for.",
    ),
    "consent:issuer": (
        "MCP 2026-07-28, authorization response validation; RFC 9207",
        "Metadata, clients, codes and redirects count for their own issuer alone.",
    ),
    "consent:pkce": (
        "MCP 2026-07-28, authorization code protection",
        "Every code is bound to its request by S256; a server without it gets no request.",
    ),
    "consent:client": (
        "MCP 2026-07-28, client registration",
        "A known client comes first, then a document about it, then a registration.",
    ),
    "consent:scopes": (
        "MCP 2026-07-28, scope selection and step-up",
        "What the refusal names is asked for, and what was granted before is kept.",
    ),
    "consent:redirect": (
        "MCP 2026-07-28, open redirection",
        "A redirect is taken once, on loopback, by its state; others change nothing.",
    ),
    "consent:kept": (
        "own decision",
        "What came of a consent is kept with its issuer and resource, whole or not at all.",
    ),
    "consent:secret": (
        "goal 34",
        "Neither code nor token is printed or logged, or follows a redirect.",
    ),
    # --- HTTP APIs by their OpenAPI documents (tests/unit and tests/contract/test_openapi.py,
    #     tests/fleet/test_apis.py)
    "openapi:definition": (
        "design 5, server definition",
        "An API is defined by its document and its base URL; what does not fit is refused.",
    ),
    "openapi:refusals": (
        "own decision",
        "A document that cannot be served whole is refused with the place of what is wrong.",
    ),
    "openapi:names": (
        "own decision",
        "Each operation is one tool with a legal, stable name; two never fall together.",
    ),
    "openapi:chosen": (
        "own decision",
        "The operator chooses operations by id or by method and path; a slip is an error.",
    ),
    "openapi:tools": (
        "own decision",
        "Every chosen operation is listed, with all its parameters and what its method promises.",
    ),
    "openapi:requests": (
        "OpenAPI 3",
        "Arguments reach the API where the document puts them: path, query, header or body.",
    ),
    "openapi:results": (
        "own decision",
        "An API's JSON is the tool's structured content, its text the text; checked if wanted.",
    ),
    "openapi:errors": (
        "own decision",
        "An API's refusal is the tool's error, with its status and the beginning of its body.",
    ),
    "openapi:unreachable": (
        "design D7",
        "An API that cannot be reached is a typed error that the breaker hears; the session stays.",
    ),
    "openapi:bounds": (
        "goal 25",
        "An API's answer over the size limit is a typed error, packed or not.",
    ),
    "openapi:cancels": (
        "design 4, Stop",
        "A cancelled call's request to the API is broken off.",
    ),
    "openapi:credentials": (
        "design 4, step 6; goal 34",
        "A credential goes out in its header, no argument replaces it, and nothing shows it.",
    ),
    "openapi:apart": (
        "design D6",
        "Nothing that an API sets in one call, cookies above all, goes with the next.",
    ),
    "openapi:delivery": (
        "RFC 9110, 9.2",
        "GET is read, PUT and DELETE idempotent, the rest write, unless the operator says other.",
    ),
    "openapi:versions": (
        "design D8",
        "A document is part of its server's immutable version, and read only to serve it.",
    ),
    "openapi:import": (
        "own decision",
        "A document becomes a definition that is complete, or an error that says why not.",
    ),
    "openapi:fleet": (
        "own decision",
        "An API's operation is called and stopped through the whole fleet like any tool.",
    ),
    # --- whole fleets (tests/fleet)
    "stop:reaches-the-server": (
        "own decision",
        (
            "Celery's revoke, Flower and the API each stop a running call: the server observes the "
            "cancellation, the neighbours live on."
        ),
    ),
    "stop:run": ("design D4", "Cancelling a run stops all its calls and no other run's."),
    "fleet:transports": (
        "own decision",
        "A call over stdio, legacy HTTP and 2026-07-28 HTTP succeeds.",
    ),
    "fleet:redacts": ("design 4, step 9", "Results are redacted before they are stored or sent."),
    "fleet:prewarmed": (
        "own decision",
        "The first call after start-up spawns nothing on its path.",
    ),
    "fleet:recycles": ("guide", "Worn-out sessions are replaced, and their processes are gone."),
    "fleet:typed-ends": (
        "own decision",
        "Whatever a server does wrong, its calls end in a typed error that says what happened.",
    ),
    "fleet:many-at-once": ("own decision", "Concurrent calls each get their own answer."),
    "fleet:kill-9": (
        "own decision",
        (
            "A worker killed in mid-call: a read finishes elsewhere, a write ends "
            "outcome_unknown and happened at most once."
        ),
    ),
    "fleet:redis-emptied": (
        "own decision",
        "Redis emptied with calls queued or under way: all end, and none happens twice.",
    ),
    "fleet:redis-away": (
        "own decision",
        "While Redis is away calls are accepted and stops work; the calls run when it is back.",
    ),
    "fleet:drain": (
        "own decision",
        "A warm shutdown lets running calls finish and gives the waiting ones to the next worker.",
    ),
    "fleet:cold-shutdown": (
        "own decision",
        "A cold shutdown cancels running calls at their servers and leaves no process.",
    ),
    "fleet:postgres-restarts": (
        "own decision",
        "A call that ends while Postgres is away is recorded once it is back.",
    ),
    "fleet:leaves-no-process": (
        "own decision",
        "When a fleet has stopped, no process of its tree is alive.",
    ),
    "fleet:starts-without-postgres": (
        "own decision",
        "An API that starts without Postgres refuses with a typed 503 and recovers by itself.",
    ),
    "celery:submit": (
        "own decision",
        (
            "A plain Celery client submits, gets the redacted result or the error, and a message "
            "delivered twice is one call."
        ),
    ),
    "celery:nothing-private": (
        "design D1",
        "Neither arguments nor results of calls lie in Redis.",
    ),
    "celery:flower": (
        "own decision",
        (
            "Flower shows tools' names and a queue per server, no arguments and no results, to the "
            "operator alone."
        ),
    ),
    "celery:flower-sign-in": (
        "own decision",
        (
            "Flower is behind the console's sign-in, holds no secret, and its stop is the fleet's: "
            "in the record first, in the operator's name."
        ),
    ),
    "celery:inspect": (
        "own decision",
        "`inspect active` and `inspect stats` tell which calls run and which sessions there are.",
    ),
    # --- what the fleet needs, and how it is watched (tests/unit/test_capacity.py, test_top.py,
    # test_fair_shares.py, tests/integration/test_watching.py, tests/fleet/test_load.py)
    "capacity:enough": (
        "own decision",
        "With the sessions that a plan asks for, 95 % of the calls wait no longer than was wished.",
    ),
    "capacity:no-more": (
        "own decision",
        "With seven tenths of the sessions that a plan asks for they do wait longer.",
    ),
    "capacity:advice": (
        "own decision",
        (
            "A plan says what to do: add workers, enlarge pools, save workers, raise a quota that "
            "sessions cannot help, or ask again after more calls."
        ),
    ),
    "capacity:from-the-ledger": (
        "own decision",
        "Plans are made from the calls of the window: how they arrived, waited and were served.",
    ),
    "fleet:state": (
        "guide",
        "Operators read servers, queues, workers, pools, breakers and the last minutes as JSON.",
    ),
    "top:live": (
        "own decision",
        "`toolfleet top` shows the fleet in a terminal of any width, and ends with q or Ctrl-C.",
    ),
    "top:goes-on": (
        "own decision",
        "While the API is away `toolfleet top` says so, since when, and goes on trying.",
    ),
    "load:no-call-lost": (
        "guide",
        (
            "With more concurrent runs than a server's pool and its tiers' limits have room for, "
            "no call is lost, none is run twice, and whoever is refused is told why and until when."
        ),
    ),
    "load:fair-share": (
        "own decision",
        "The load test knows what is fair: by weight, and to nobody more than they ask for.",
    ),
}


def requirement(*ids: str) -> Callable[[Test], Test]:
    """Mark a test with the promises it checks; an unknown id is an error at import."""
    unknown = [id_ for id_ in ids if id_ not in REQUIREMENTS]
    if unknown or not ids:
        raise ValueError(f"unknown requirement ids: {unknown}; add them to tests/requirements.py")
    mark = pytest.mark.requirement(*ids)

    def decorate(test: Test) -> Test:
        return mark(test)

    return decorate
