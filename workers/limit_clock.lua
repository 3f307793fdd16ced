-- What every limit script begins with; limits_redis.py puts it in front of each.
-- ARGV[#ARGV]  now in microseconds since EPOCH_S, or '' for this server's own clock
-- A bucket is a string: the instant at which it will be full again (GCRA, its "arrival time"), in
-- microseconds since EPOCH_S. A full one is not kept. An instant further ahead than it takes to
-- fill an empty bucket is that of an empty one: a clock that went back costs no more.
-- EPOCH_S keeps the numbers small enough for fractions of a microsecond.
local EPOCH_S, EXACT, SLACK_MS = 1767225600, '%.17g', 10000

local now = tonumber(ARGV[#ARGV])
if not now then
  local time = redis.call('TIME')
  now = (time[1] - EPOCH_S) * 1000000 + time[2]
end

-- Returns when a bucket will be full again; ARGV[i] is its interval and ARGV[i + 1] its burst.
local function full_at(key, i)
  local kept = tonumber(redis.call('GET', key) or now)
  return math.min(math.max(kept, now), now + tonumber(ARGV[i]) * tonumber(ARGV[i + 1]))
end

local function keep(key, instant)
  local ms = math.ceil((instant - now) / 1000) + SLACK_MS
  redis.call('SET', key, string.format(EXACT, instant), 'PX', ms)
end
