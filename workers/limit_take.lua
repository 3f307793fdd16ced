-- Take one call from each of several buckets, or from none of them.
-- KEYS[1]         sorted set: the processes that ask here, by when they asked last
-- KEYS[2]         hash: the pauses of a server (limit_pause.lua)
-- KEYS[3]         sorted set: calls under way, by when their leases end
-- KEYS[4..]       the buckets
-- ARGV[1] who asks            ARGV[2] for how long that counts, in milliseconds
-- ARGV[3] field of the pause  ARGV[4] most calls under way, 0 for any number
-- ARGV[5] the call's token    ARGV[6] its lease in milliseconds
-- ARGV[7..] for each bucket its interval in microseconds and its burst
-- Reply: why not (0 granted, -1 paused, -2 full, or the number of the bucket that takes longest),
-- microseconds to wait, how many processes ask here, then what is left in each bucket.
local FIRST = 7
local remembered = tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - remembered * 1000)
redis.call('PEXPIRE', KEYS[1], remembered)
local reply = { 0, 0, redis.call('ZCARD', KEYS[1]) }

local function refuse(why, wait)
  if wait > reply[2] then reply[1], reply[2] = why, wait end
end

refuse(-1, math.ceil(tonumber(redis.call('HGET', KEYS[2], ARGV[3]) or 0) - now))

local after = {}
for k = 4, #KEYS do
  local i = FIRST + 2 * (k - 4)
  local interval, burst = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  local from = full_at(KEYS[k], i)
  local room = now + interval * burst - from
  after[k] = from + interval
  -- A microsecond is forgiven: it is what the sums above may be wrong by.
  local wait = interval - room
  if wait >= 1 then refuse(k - 3, math.ceil(wait)) end
  reply[k] = math.max(0, math.floor((room + 1) / interval))
end

local most = tonumber(ARGV[4])
if most > 0 and reply[2] == 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
  if redis.call('ZCARD', KEYS[3]) >= most then
    local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
    refuse(-2, math.max(1, math.ceil(first[2] - now)))
  end
end
if reply[2] > 0 then return reply end

for k = 4, #KEYS do
  keep(KEYS[k], after[k])
  reply[k] = reply[k] - 1
end
if most > 0 then
  local lease = tonumber(ARGV[6])
  redis.call('ZADD', KEYS[3], now + lease * 1000, ARGV[5])
  redis.call('PEXPIRE', KEYS[3], math.max(lease, redis.call('PTTL', KEYS[3])) + SLACK_MS)
end
return reply
