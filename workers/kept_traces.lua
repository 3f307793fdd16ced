-- Keeps parts of traces, and of all traces the newest.
-- KEYS: the index (a sorted set: trace ids by when their first part came), what the key of a
--   trace's parts (a list) begins with
-- ARGV: lifetime in seconds, most traces, most parts of one, then trace id and part by turns
local lifetime, most_traces, most_parts = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for at = 4, #ARGV, 2 do
  local key = KEYS[2] .. ARGV[at]
  local parts = redis.call('RPUSH', key, ARGV[at + 1])
  if parts == 1 then
    redis.call('ZADD', KEYS[1], now + at / 1000000, ARGV[at])
    redis.call('EXPIRE', key, lifetime)
  elseif parts > most_parts then
    redis.call('LPOP', key)
  end
end
redis.call('EXPIRE', KEYS[1], lifetime)
local surplus = redis.call('ZCARD', KEYS[1]) - most_traces
if surplus > 0 then
  local gone = redis.call('ZPOPMIN', KEYS[1], surplus)
  for at = 1, #gone, 2 do
    redis.call('UNLINK', KEYS[2] .. gone[at])
  end
end
