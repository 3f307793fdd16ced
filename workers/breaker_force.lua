-- Open or close by hand; closing a closed breaker changes nothing.
-- ARGV[2] open_for in milliseconds, 0 to close   ARGV[3] why, in words
local open_for = tonumber(ARGV[2])
if open_for > 0 or state() ~= 'closed' then move(open_for, ARGV[3]) end
return snapshot()
