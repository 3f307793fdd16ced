-- What both scripts of a fair queue begin with; fair_queue.py puts it in front of each.
-- KEYS[1]  list: the queue as Celery knows it, the next element on its right. Each element is a
--          waiting message: TICKET for any one of KEYS[2], or a message itself
-- KEYS[2]  sorted set: waiting messages by turn; a member is an arrival's number, then its message
-- KEYS[3]  sorted set: tenants by the turn of their last message in KEYS[2]
-- KEYS[4]  hash: now (the turn that was taken last), sent (the number of the last arrival)
-- KEYS[2], KEYS[3] and KEYS[4] are gone when no message is in KEYS[2].
local LIST, WAITING, TENANTS, CLOCK = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local TICKET, NUMBER, DIGITS, AT_ONCE = '"next"', '%015d', 15, 1000

-- Adds tickets, in groups that fit Lua's stack.
local function announce(count)
  while count > 0 do
    local tickets = {}
    for i = 1, math.min(count, AT_ONCE) do tickets[i] = TICKET end
    redis.call('LPUSH', LIST, unpack(tickets))
    count = count - #tickets
  end
end
