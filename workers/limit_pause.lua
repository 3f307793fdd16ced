-- Send a server nothing for a while: it said so. A pause that lasts longer already stays.
-- KEYS[1]   hash: the server's pauses. '=' .. identity: until when (microseconds); '#' .. identity:
--           how often in a row it did not say for how long
-- KEYS[2..] the buckets of what is paused: they are empty when the pause ends
-- ARGV[1] server    ARGV[2] identity    ARGV[3] for how long in microseconds, '' if it did not say
-- ARGV[4] the first such pause   ARGV[5] the longest of any, in microseconds
-- ARGV[6..] for each bucket its interval in microseconds and its burst
-- Reply: for how long it is paused, in microseconds.
local CHANNEL, REMEMBERED_MS = 'toolfleet:pauses:', 60000
local field, strikes = '=' .. ARGV[2], '#' .. ARGV[2]
local longest = tonumber(ARGV[5])
local wait = tonumber(ARGV[3])
if wait then
  redis.call('HDEL', KEYS[1], strikes)
else
  local times = redis.call('HINCRBY', KEYS[1], strikes, 1)
  wait = tonumber(ARGV[4]) * 2 ^ math.min(times - 1, 20)
end
local until_ = now + math.min(wait, longest)
until_ = math.min(math.max(until_, tonumber(redis.call('HGET', KEYS[1], field) or 0)), now + longest)
redis.call('HSET', KEYS[1], field, string.format(EXACT, until_))
local ms = math.ceil((until_ - now) / 1000) + REMEMBERED_MS
redis.call('PEXPIRE', KEYS[1], math.max(ms, redis.call('PTTL', KEYS[1])))
for k = 2, #KEYS do
  local i = 6 + 2 * (k - 2)
  keep(KEYS[k], until_ + tonumber(ARGV[i]) * tonumber(ARGV[i + 1]))
end
redis.call('PUBLISH', CHANNEL .. ARGV[1], '')
return math.ceil(until_ - now)
