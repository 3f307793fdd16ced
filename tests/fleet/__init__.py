"""What only whole fleets can show: processes of the product, real servers, callers outside."""
