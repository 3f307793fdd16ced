-- Take the next messages of one queue, and see that the list tells of all that are left: so a
-- message is found whose ticket was lost. Keys: as in fair_state.lua.
-- ARGV[1] most messages to take, 0 to see to the list alone
-- ARGV[2] how many of their tickets the caller has taken from the list already
local most, tickets = tonumber(ARGV[1]), tonumber(ARGV[2])

local found = {}
for _, element in ipairs(redis.call('RPOP', LIST, most - tickets) or {}) do
  if element ~= TICKET then found[#found + 1] = element end
end
local taken = redis.call('ZPOPMIN', WAITING, most - #found)
for i = 1, #taken, 2 do found[#found + 1] = string.sub(taken[i], DIGITS + 1) end

local left = redis.call('ZCARD', WAITING)
if left == 0 then
  redis.call('DEL', TENANTS, CLOCK)
elseif #taken > 0 then
  local now = taken[#taken]
  redis.call('HSET', CLOCK, 'now', now)
  redis.call('ZREMRANGEBYSCORE', TENANTS, '-inf', now)
end
announce(left - redis.call('LLEN', LIST))
return found
