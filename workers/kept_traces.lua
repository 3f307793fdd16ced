-- Keeps parts of traces, and of all traces the newest.
-- KEYS: the index (a sorted set: trace ids by when their first part came), the sizes (a hash: the
--   bytes of each trace in the index, and of all of them as 'all'), what the key of a trace's
--   parts (a list) begins with
-- ARGV: lifetime in seconds, most traces, most bytes of all, most parts of one, most bytes of one,
--   then trace id and part by turns
local lifetime, most_traces, most_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most_parts, most_of_one = tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for at = 6, #ARGV, 2 do
  local trace, part = ARGV[at], ARGV[at + 1]
  if #part <= most_of_one then
    local key = KEYS[3] .. trace
    local parts, size = redis.call('RPUSH', key, part), #part
    local before = tonumber(redis.call('HGET', KEYS[2], trace) or 0)
    if parts == 1 then
      -- What had a size before has expired: it is new again.
      redis.call('ZADD', KEYS[1], now + at / 1000000, trace)
      redis.call('EXPIRE', key, lifetime)
    else
      size = size + before
    end
    while parts > most_parts or size > most_of_one do
      size = size - #redis.call('LPOP', key)
      parts = parts - 1
    end
    redis.call('HSET', KEYS[2], trace, size)
    redis.call('HINCRBY', KEYS[2], 'all', size - before)
  end
end
redis.call('EXPIRE', KEYS[1], lifetime)
redis.call('EXPIRE', KEYS[2], lifetime)
-- Those that have expired are counted until they go from here. They are the oldest: none goes
-- before them.
local surplus = redis.call('ZCARD', KEYS[1]) - most_traces
local all = tonumber(redis.call('HGET', KEYS[2], 'all') or 0)
while surplus > 0 or all > most_bytes do
  local oldest = redis.call('ZPOPMIN', KEYS[1])[1]
  if not oldest then
    redis.call('DEL', KEYS[2])
    break
  end
  redis.call('UNLINK', KEYS[3] .. oldest)
  local size = tonumber(redis.call('HGET', KEYS[2], oldest) or 0)
  redis.call('HDEL', KEYS[2], oldest)
  all = redis.call('HINCRBY', KEYS[2], 'all', -size)
  surplus = surplus - 1
end
