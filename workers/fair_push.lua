-- Send messages to one queue. A first one that finds nothing waiting has nobody to be fair to: it is
-- put into the list itself, and costs its worker no second trip. Keys: as in fair_state.lua.
-- ARGV  for each message: its tenant, its cost, the message
local first = 1
if redis.call('LLEN', LIST) == 0 and redis.call('ZCARD', WAITING) == 0 then
  redis.call('LPUSH', LIST, ARGV[3])
  first = 4
end
if first > #ARGV then return end

local clock = redis.call('HMGET', CLOCK, 'now', 'sent')
local now, sent = tonumber(clock[1] or 0), tonumber(clock[2] or 0)
for i = first, #ARGV, 3 do
  local tenant, cost, message = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local last = tonumber(redis.call('ZSCORE', TENANTS, tenant) or 0)
  local turn = math.max(now, last) + cost
  sent = sent + 1
  redis.call('ZADD', WAITING, turn, string.format(NUMBER, sent) .. message)
  redis.call('ZADD', TENANTS, turn, tenant)
end
redis.call('HSET', CLOCK, 'now', now, 'sent', sent)
announce((#ARGV - first + 1) / 3)
