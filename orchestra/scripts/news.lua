-- Take in what a holder has to say of its leases: acknowledged, given back, not due yet, not fit to run.
-- KEYS: 1 messages that were delivered again. ARGV: 1 how our keys begin, 2 holder, 3 news as in leases.lua ....
--#include leases
take_in_news(ARGV[1], KEYS[1], ARGV[2], 3)
return 1
