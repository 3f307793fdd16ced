-- What every breaker script begins with; breaker_redis.py puts it in front of each.
-- KEYS[1]      the hash of one server version
-- ARGV[1]      milliseconds per bucket of the window
-- ARGV[#ARGV]  now in milliseconds, or '' for this server's own clock
-- Fields of the hash, times in milliseconds; a field that is absent is 0:
--   generation, run (timeouts since the last success), opened_at, open_until (0: closed),
--   since (when it last ceased to be closed), why (it did, in words),
--   probe, probe_until, b0..b9 ("<bucket number> <calls> <failures>")
local CHANNEL, BUCKETS, FORGET_CLOSED_AFTER_S = 'toolfleet:breaker', 10, 86400

local now = tonumber(ARGV[#ARGV])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local bucket = math.floor(now / tonumber(ARGV[1]))
local facts

local function number(name) return tonumber(facts[name] or 0) end

local function load()
  facts = {}
  local reply = redis.call('HGETALL', KEYS[1])
  for i = 1, #reply, 2 do facts[reply[i]] = reply[i + 1] end
end

local function state()
  if number('open_until') == 0 then return 'closed' end
  return now < number('open_until') and 'open' or 'half_open'
end

-- Returns the number of a slot's bucket, and its calls and failures.
local function counts(slot)
  local index, calls, failures = string.match(facts['b' .. slot] or '', '^(%d+) (%d+) (%d+)$')
  return tonumber(index or -1), tonumber(calls or 0), tonumber(failures or 0)
end

local function window()
  local total, failed = 0, 0
  for slot = 0, BUCKETS - 1 do
    local index, calls, failures = counts(slot)
    if index > bucket - BUCKETS then total, failed = total + calls, failed + failures end
  end
  return total, failed
end

-- Begins a new generation; it exceeds every earlier one even if this hash was lost in between.
-- Opening again is for the reason of before unless there is another `why`.
local function move(open_for, why)
  local generation = math.max(number('generation') + 1, now)
  local since, reason = facts['since'] or now, why or facts['why'] or ''
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'generation', generation)
  if open_for > 0 then
    redis.call('HSET', KEYS[1], 'opened_at', now, 'open_until', now + open_for,
      'since', since, 'why', reason)
  else
    redis.call('EXPIRE', KEYS[1], FORGET_CLOSED_AFTER_S)
  end
  load()
  redis.call('PUBLISH', CHANNEL, KEYS[1] .. ' ' .. state())
end

-- Reply: state, generation, run, calls, failures, opened_at, milliseconds to wait, probe or '',
-- milliseconds since it was closed, why it is not.
local function snapshot()
  local held = number('probe_until') > now
  local until_ms = held and number('probe_until') or number('open_until')
  local calls, failures = window()
  return {
    state(), number('generation'), number('run'), calls, failures, number('opened_at'),
    math.max(0, until_ms - now), held and facts['probe'] or '',
    math.max(0, now - (facts['since'] or now)), facts['why'] or '',
  }
end

load()
