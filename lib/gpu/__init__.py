"""What only a GPU needs: its libraries, cuDNN, few launches, copies that nobody waits for."""
